-- KEYS: the session. ARGV: session. Deletes it, and those locks that it holds still.
-- The fields that are numbers are requests: what each holds, or nothing once it has ended.
local fields = redis.call('HGETALL', KEYS[1])
for at = 1, #fields, 2 do
    local request, lock = fields[at], fields[at + 1]
    if tonumber(request) and lock ~= '' then
        local holder = redis.call('HMGET', lock, 'session', 'request')
        if holder[1] == ARGV[1] and holder[2] == request then
            redis.call('DEL', lock)
        end
    end
end
redis.call('DEL', KEYS[1])
return { 'done', '' }
