-- Takes `least` to `most` units of one key, at the server's clock. All times in microseconds.
-- Answers {granted, remaining, wait (-1: never), reset}.
local kind, limit = ARGV[1], tonumber(ARGV[2])
local interval, per = tonumber(ARGV[3]), tonumber(ARGV[4])
local least, most = tonumber(ARGV[5]), tonumber(ARGV[6])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local stored = redis.call('GET', KEYS[1])

-- When a key that is not here counts as drained: when the server started. It counts its uptime in
-- whole seconds, and may be a second ahead.
local started = 0
if not stored and ARGV[7] == 'drained' then
  local up = tonumber(string.match(redis.call('INFO', 'server'), 'uptime_in_seconds:(%d+)')) or 0
  started = now - math.max(up - 1, 0) * 1000000
end

if kind == 'gcra' then
  -- The string is the theoretical arrival time.
  local span = limit * interval
  local arrival = stored and tonumber(stored) or (started + span)
  local ahead = math.max(arrival - now, 0)
  local room = math.max(math.floor((span - ahead) / interval), 0)
  local granted = math.min(room, most)
  local wait = 0
  if granted < least then
    wait = least > limit and -1 or ahead + least * interval - span
    granted = 0
  end
  ahead = ahead + granted * interval
  -- Also a denial's, if the key was not here: so that it counts from one start.
  if granted > 0 or (not stored and ahead > 0) then
    redis.call('SET', KEYS[1], string.format('%.0f', now + ahead), 'PX', math.ceil(ahead / 1000))
  end
  return {granted, room - granted, wait, ahead}
end

-- The string is the number of the window and the units used in it.
local index = math.floor(now / per)
local rest = (index + 1) * per - now
local used = 0
if stored then
  local window, units = string.match(stored, '^(%d+):(%d+)$')
  if tonumber(window) >= index then
    -- The server's clock may have gone back: the later window goes on.
    index = tonumber(window)
    rest = (index + 1) * per - now
    used = tonumber(units)
  end
elseif math.floor(started / per) >= index then
  used = limit
end
local room = math.max(limit - used, 0)
local granted = math.min(room, most)
if granted < least then
  return {0, room, least > limit and -1 or rest, used > 0 and rest or 0}
end
local text = string.format('%.0f:%.0f', index, used + granted)
redis.call('SET', KEYS[1], text, 'PX', math.ceil(rest / 1000))
return {granted, room - granted, 0, rest}
