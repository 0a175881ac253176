-- Drops values and leases, and raises the floors of tags and of everything.
-- KEYS: last version, floor of everything, values and leases, floors of tags.
-- ARGV: how many values and leases, whether everything, ms of floors that no value needs.
local dropped = tonumber(ARGV[1])
for at = 3, 2 + dropped do
  redis.call('DEL', KEYS[at])
end
if #KEYS == 2 + dropped and ARGV[2] == '0' then
  return 1
end
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local version = math.max(now, tonumber(redis.call('GET', KEYS[1]) or '0') + 1)
version = string.format('%.0f', version)
redis.call('SET', KEYS[1], version)
if ARGV[2] == '1' then
  redis.call('SET', KEYS[2], version)
end
for at = 3 + dropped, #KEYS do
  if redis.call('EXISTS', KEYS[at]) == 1 then
    redis.call('SET', KEYS[at], version, 'KEEPTTL')
  else
    redis.call('SET', KEYS[at], version, 'PX', ARGV[3])
  end
end
return 1
