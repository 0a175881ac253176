-- KEYS: the session. ARGV: session. Renews it and all its locks.
local ttl = redis.call('HGET', KEYS[1], 'ttl')
if not ttl then
    return { 'no session', '' }
end
-- The fields that are numbers are requests: what each holds, or nothing once it has ended.
local fields = redis.call('HGETALL', KEYS[1])
for at = 1, #fields, 2 do
    local request, lock = fields[at], fields[at + 1]
    if tonumber(request) and lock ~= '' then
        local holder = redis.call('HMGET', lock, 'session', 'request')
        if holder[1] ~= ARGV[1] or holder[2] ~= request then
            -- What it held has vanished, and others may hold it: the session is lost as a whole.
            redis.call('DEL', KEYS[1])
            return { 'no session', '' }
        end
        redis.call('PEXPIRE', lock, ttl)
    end
end
redis.call('PEXPIRE', KEYS[1], ttl)
return { 'done', '' }
