-- Takes `least` to `most` units of one key, at the server's clock.
--
-- ARGV: kind, limit, interval (ticks), ticks in a microsecond (1000 or 1), period (microseconds),
-- least, most, what a lost key counts as ('drained' or 'fresh').
-- Answers {granted, remaining, wait (microseconds, -1: never), reset (microseconds), unreadable}.
--
-- State, a string 'A:B' of decimal figures:
--   GCRA: the theoretical arrival time is microsecond A since 1970 and B nanoseconds (0 to 999).
--   Fixed window: the window that began at microsecond A since 1970 has B units used.
local kind, limit = ARGV[1], tonumber(ARGV[2])
local interval, ticks = tonumber(ARGV[3]), tonumber(ARGV[4])
local per = tonumber(ARGV[5])
local least, most = tonumber(ARGV[6]), tonumber(ARGV[7])
local drained = ARGV[8] == 'drained'

-- The error to answer with if a command failed. What the ACL says differs by version and does not
-- always name the command.
local function failure(name, answer)
  if type(answer) ~= 'table' or not answer.err then
    return nil
  end
  for _, rejection in ipairs({"can't run this command", 'ACL failure', 'no permissions'}) do
    if string.find(answer.err, rejection, 1, true) then
      return redis.error_reply("NOPERM this user may not run the '" .. name .. "' command")
    end
  end
  return answer
end

local time = redis.pcall('TIME')
local failed = failure('time', time)
if failed then
  return failed
end
local now = time[1] * 1000000 + time[2]

local first, second
local unreadable = 0
local stored = redis.pcall('GET', KEYS[1])
if type(stored) == 'table' then
  if not string.find(stored.err, 'WRONGTYPE', 1, true) then
    return failure('get', stored)
  end
  unreadable = 1
elseif stored then
  first, second = string.match(stored, '^(%d+):(%d+)$')
  if not first or #first > 16 or #second > 16 then
    first, second, unreadable = nil, nil, 1
  else
    first, second = tonumber(first), tonumber(second)
  end
end

-- From when on a key that is not here counts as drained: the server's start. Its uptime is in whole
-- seconds, and may be a second ahead.
local started = 0
if not stored and drained then
  local info = redis.pcall('INFO', 'server')
  failed = failure('info', info)
  if failed then
    return failed
  end
  local up = tonumber(string.match(info, 'uptime_in_seconds:(%d+)')) or 0
  started = now - math.max(up - 1, 0) * 1000000
end

if kind == 'gcra' then
  local span = limit * interval
  local ahead = 0
  if first then
    ahead = (first - now) * ticks + math.ceil(second * ticks / 1000)
  elseif unreadable == 1 then
    ahead = drained and span or 0
  elseif drained then
    ahead = (started - now) * ticks + span
  end
  -- Never more than the span: the clock was set back since, or the quota was larger.
  local clamped = ahead > span
  ahead = math.min(math.max(ahead, 0), span)
  local room = math.floor((span - ahead) / interval)
  local granted = math.min(room, most)
  local wait = 0
  if granted < least then
    wait = least > limit and -1 or math.ceil((ahead + least * interval - span) / ticks)
    granted = 0
  end
  ahead = ahead + granted * interval
  -- Also for a rejection, if the state is another than the stored one: so that it counts from now on,
  -- and not from each later question anew.
  if granted > 0 or clamped or (not first and ahead > 0) then
    local whole = math.floor(ahead / ticks)
    local text = string.format('%.0f:%.0f', now + whole, (ahead - whole * ticks) * 1000 / ticks)
    -- Two more: the server expires by milliseconds that it reads before this script runs.
    failed = failure('set', redis.pcall('SET', KEYS[1], text, 'PX', math.ceil(whole / 1000) + 2))
    if failed then
      return failed
    end
  end
  return {granted, room - granted, wait, math.ceil(ahead / ticks), unreadable}
end

local start = now - now % per
local rest = start + per - now
local used = 0
if first then
  -- A window that begins later than this one: the clock was set back since, or the period was
  -- another. Its units count in this one.
  if first >= start then
    used = second
  end
elseif unreadable == 1 then
  used = drained and limit or 0
elseif started >= start then
  used = limit
end
local room = math.max(limit - used, 0)
local granted = math.min(room, most)
local wait = 0
if granted < least then
  wait = least > limit and -1 or rest
  granted = 0
end
used = used + granted
-- Also for a rejection, if the state is another than the stored one: so that it counts in this window
-- only.
local moved = unreadable == 1 or (first and first > start)
if granted > 0 or (moved and used > 0) then
  local text = string.format('%.0f:%.0f', start, used)
  failed = failure('set', redis.pcall('SET', KEYS[1], text, 'PX', math.ceil(rest / 1000) + 2))
  if failed then
    return failed
  end
end
return {granted, room - granted, wait, used > 0 and rest or 0, unreadable}
