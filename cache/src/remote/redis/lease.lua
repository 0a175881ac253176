-- Takes a lease and draws the version of the load that begins with it.
-- KEYS: lease, last version. ARGV: token, ms.
if not redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then
  return false
end
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local version = math.max(now, tonumber(redis.call('GET', KEYS[2]) or '0') + 1)
version = string.format('%.0f', version)
redis.call('SET', KEYS[2], version)
return version
