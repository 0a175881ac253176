-- Stores a value under its lease, and ends the lease. Not over a value of a larger source version
-- or position: both are big-endian in the value's head, so that they compare as text.
-- KEYS: value, lease, floors of tags. ARGV: token, bytes, ms, ms of floors.
if redis.call('GET', KEYS[2]) ~= ARGV[1] then
  return 0
end
redis.call('DEL', KEYS[2])
local old = redis.call('GETRANGE', KEYS[1], 0, 35)
local new = ARGV[2]
if #old == 36 and string.sub(old, 1, 3) == string.sub(new, 1, 3) then
  local old_flags, new_flags = string.byte(old, 4), string.byte(new, 4)
  if old_flags % 2 == 1 and new_flags % 2 == 1
      and string.sub(old, 21, 28) > string.sub(new, 21, 28) then
    return 0
  end
  if old_flags >= 2 and new_flags >= 2
      and string.sub(old, 29, 36) > string.sub(new, 29, 36) then
    return 0
  end
end
for at = 3, #KEYS do
  if not redis.call('SET', KEYS[at], '0', 'NX', 'PX', ARGV[4]) then
    if redis.call('PTTL', KEYS[at]) < tonumber(ARGV[4]) then
      redis.call('PEXPIRE', KEYS[at], ARGV[4])
    end
  end
end
redis.call('SET', KEYS[1], new, 'PX', ARGV[3])
return 1
