-- The lock service in PostgreSQL. What stands in braces is replaced: its schema as a name, and its
-- sequence and channel as texts.
--
-- Each function is one statement of a client, and so one transaction, whose locks last for a round
-- trip to the disk and not for one to a client. Rows are locked in one order: locks, by name, then
-- sessions. Time is the database's, and counts only by `clock_timestamp()`.

CREATE SCHEMA IF NOT EXISTS {schema};

-- Tokens, versions and places. It is never reset, and no value of it is kept by a client.
CREATE SEQUENCE {schema}.numbers CACHE 1 NO CYCLE;

CREATE TABLE {schema}.sessions (
    id bigint PRIMARY KEY,
    ttl_ms bigint NOT NULL CHECK (ttl_ms BETWEEN 100 AND 3600000),
    expires_at timestamptz NOT NULL,
    -- Once true, it is final: also if the clock of the database steps back.
    is_ended boolean NOT NULL DEFAULT false,
    -- Ended by its client: without lock-delay.
    is_closed boolean NOT NULL DEFAULT false,
    -- Requests below this are known, or have ended.
    floor bigint NOT NULL DEFAULT 1
);
CREATE INDEX ON {schema}.sessions (expires_at);

-- A lock that nobody uses has no row.
CREATE TABLE {schema}.locks (
    name bytea PRIMARY KEY CHECK (length(name) <= 1024),
    value bytea NOT NULL DEFAULT '' CHECK (length(value) <= 4096),
    -- Grows with each change of the holders or the value.
    version bigint NOT NULL DEFAULT 0,
    delayed_until timestamptz
);

-- What sessions hold and wait for, and, without a name, what has ended and may arrive late.
CREATE TABLE {schema}.requests (
    session bigint NOT NULL,
    request bigint NOT NULL,
    name bytea,
    mode smallint NOT NULL DEFAULT 0,
    slots bigint NOT NULL DEFAULT 0,
    delay_ms bigint NOT NULL DEFAULT 0,
    place bigint NOT NULL DEFAULT 0,
    token bigint,
    written bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (session, request)
);
CREATE INDEX ON {schema}.requests (name, place) WHERE name IS NOT NULL;

CREATE FUNCTION {schema}.is_live(s {schema}.sessions) RETURNS boolean
LANGUAGE sql VOLATILE AS $$
    SELECT s.id IS NOT NULL AND NOT s.is_ended AND s.expires_at > clock_timestamp()
$$;

-- Settings of the transaction, whatever those of the connection are, which may be a pooler's. A
-- grant or a renewal that a crash could take back would be given twice; what a call waits for is
-- short by design, and the lock of somebody else is not.
CREATE FUNCTION {schema}.begin_call() RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('lock_timeout', '2s', true);
    IF current_setting('synchronous_commit') IN ('off', 'local') THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
END
$$;

CREATE FUNCTION {schema}.open_session(a_session bigint, a_ttl_ms bigint) RETURNS text
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM {schema}.begin_call();
    INSERT INTO {schema}.sessions (id, ttl_ms, expires_at)
    VALUES (a_session, a_ttl_ms, clock_timestamp() + a_ttl_ms * interval '1 ms');
    RETURN 'done';
END
$$;

CREATE FUNCTION {schema}.renew_session(a_session bigint) RETURNS text
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM {schema}.begin_call();
    UPDATE {schema}.sessions SET expires_at = clock_timestamp() + ttl_ms * interval '1 ms'
    WHERE id = a_session AND NOT is_ended AND expires_at > clock_timestamp();
    RETURN CASE WHEN FOUND THEN 'done' ELSE 'no session' END;
END
$$;

-- Takes the row of a lock, which is made if it is not there.
CREATE FUNCTION {schema}.take_row(n bytea) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM {schema}.begin_call();
    -- Ends: the row is there, unless another deletes it each time, which commits a release.
    LOOP
        PERFORM 1 FROM {schema}.locks WHERE name = n FOR UPDATE;
        EXIT WHEN FOUND;
        INSERT INTO {schema}.locks (name) VALUES (n) ON CONFLICT DO NOTHING;
    END LOOP;
END
$$;

-- Ends the requests of dead sessions, and grants the lock to those who wait and can have it.
-- The caller has taken the row.
CREATE FUNCTION {schema}.settle(n bytea, has_changed boolean) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    l {schema}.locks;
    q record;
    s {schema}.sessions;
    holders bigint;
    are_alike boolean;
BEGIN
    SELECT * INTO STRICT l FROM {schema}.locks WHERE name = n;
    FOR q IN
        SELECT r.session, r.request, r.token, r.delay_ms
        FROM {schema}.requests r LEFT JOIN {schema}.sessions x ON x.id = r.session
        WHERE r.name = n
        AND (x.id IS NULL OR x.is_ended OR x.expires_at <= clock_timestamp())
        ORDER BY r.session, r.request
    LOOP
        UPDATE {schema}.sessions SET is_ended = true
        WHERE id = q.session AND NOT is_ended AND expires_at <= clock_timestamp();
        SELECT * INTO s FROM {schema}.sessions WHERE id = q.session;
        -- It was renewed meanwhile.
        CONTINUE WHEN {schema}.is_live(s);
        DELETE FROM {schema}.requests WHERE session = q.session AND request = q.request;
        IF q.token IS NOT NULL THEN
            has_changed := true;
            IF q.delay_ms > 0 AND s.id IS NOT NULL AND NOT s.is_closed THEN
                l.delayed_until := greatest(
                    l.delayed_until, s.expires_at + q.delay_ms * interval '1 ms');
            END IF;
        END IF;
    END LOOP;
    IF l.delayed_until <= clock_timestamp() THEN
        l.delayed_until := NULL;
    END IF;
    -- Ends: each turn grants one of those that wait.
    WHILE l.delayed_until IS NULL LOOP
        SELECT r.session, r.request, r.mode, r.slots INTO q FROM {schema}.requests r
        WHERE r.name = n AND r.token IS NULL ORDER BY r.place LIMIT 1;
        EXIT WHEN NOT FOUND;
        SELECT count(*), coalesce(bool_and(r.mode = q.mode AND r.slots = q.slots), true)
        INTO holders, are_alike
        FROM {schema}.requests r WHERE r.name = n AND r.token IS NOT NULL;
        EXIT WHEN holders > 0 AND NOT are_alike OR holders >= q.slots;
        UPDATE {schema}.requests SET token = nextval({sequence})
        WHERE session = q.session AND request = q.request;
        has_changed := true;
        PERFORM pg_notify({channel}, q.session || '/' || q.request);
    END LOOP;
    IF has_changed THEN
        l.version := nextval({sequence});
        -- Locks whose value tells something are observed.
        IF l.value <> '' THEN
            PERFORM pg_notify({channel}, encode(n, 'hex'));
        END IF;
    END IF;
    IF l.value = '' AND l.delayed_until IS NULL
        AND NOT EXISTS (SELECT FROM {schema}.requests WHERE name = n)
    THEN
        DELETE FROM {schema}.locks WHERE name = n;
    ELSE
        UPDATE {schema}.locks SET version = l.version, delayed_until = l.delayed_until
        WHERE name = n AND (version, delayed_until) IS DISTINCT FROM (l.version, l.delayed_until);
    END IF;
END
$$;

-- 'granted' with a token; 'queued', with the ms until what it waits for may end by itself; 'busy';
-- or why not.
CREATE FUNCTION {schema}.acquire(
    a_session bigint, a_request bigint, a_floor bigint, n bytea, a_mode smallint, a_slots bigint,
    a_wait boolean, a_delay_ms bigint, OUT status text, OUT number bigint
) LANGUAGE plpgsql AS $$
DECLARE
    s {schema}.sessions;
    q {schema}.requests;
BEGIN
    PERFORM {schema}.take_row(n);
    SELECT * INTO s FROM {schema}.sessions WHERE id = a_session;
    SELECT * INTO q FROM {schema}.requests WHERE session = a_session AND request = a_request;
    status := CASE
        WHEN NOT {schema}.is_live(s) THEN 'no session'
        WHEN q.session IS NULL AND a_request < s.floor THEN 'stale'
        WHEN q.session IS NOT NULL AND q.name IS DISTINCT FROM n THEN 'stale'
        WHEN q.session IS NULL AND a_request - a_floor >= 10000 THEN 'requests'
        WHEN q.session IS NULL AND 10000 <= (
            SELECT count(*) FROM {schema}.requests r WHERE r.name = n AND r.token IS NULL
        ) THEN 'queue'
    END;
    IF status IS NOT NULL THEN
        PERFORM {schema}.settle(n, false);
        RETURN;
    END IF;
    IF q.session IS NULL THEN
        INSERT INTO {schema}.requests (session, request, name, mode, slots, delay_ms, place)
        VALUES (a_session, a_request, n, a_mode, a_slots, a_delay_ms,
                nextval({sequence}));
    END IF;
    PERFORM {schema}.settle(n, false);
    SELECT * INTO q FROM {schema}.requests WHERE session = a_session AND request = a_request;
    IF NOT FOUND THEN
        status := 'no session';
    ELSIF q.token IS NOT NULL THEN
        status := 'granted';
        number := q.token;
    ELSIF a_wait THEN
        status := 'queued';
        number := {schema}.wait_ms(n, q.place);
    ELSE
        status := 'busy';
        UPDATE {schema}.requests SET name = NULL
        WHERE session = a_session AND request = a_request;
        PERFORM {schema}.settle(n, false);
    END IF;
    IF a_floor > s.floor THEN
        UPDATE {schema}.sessions SET floor = a_floor WHERE id = a_session AND floor < a_floor;
        DELETE FROM {schema}.requests
        WHERE session = a_session AND request < a_floor AND name IS NULL;
    END IF;
END
$$;

-- Of the first in the queue: the ms until the lock may come free without a release.
CREATE FUNCTION {schema}.wait_ms(n bytea, a_place bigint) RETURNS bigint
LANGUAGE sql VOLATILE AS $$
    SELECT CASE WHEN NOT EXISTS (
        SELECT FROM {schema}.requests r
        WHERE r.name = n AND r.token IS NULL AND r.place < a_place
    ) THEN (
        SELECT ceil(1000 * extract(epoch FROM min(t) - clock_timestamp()))::bigint FROM (
            SELECT x.expires_at AS t
            FROM {schema}.requests r JOIN {schema}.sessions x ON x.id = r.session
            WHERE r.name = n AND r.token IS NOT NULL
            UNION ALL
            SELECT delayed_until FROM {schema}.locks WHERE name = n
        ) ends
    ) END
$$;

CREATE FUNCTION {schema}.release(a_session bigint, a_request bigint) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    q {schema}.requests;
    s {schema}.sessions;
    is_held boolean;
BEGIN
    -- Ends: the request is there the second time at the latest, and nobody deletes it but with
    -- its session.
    LOOP
        SELECT * INTO q FROM {schema}.requests WHERE session = a_session AND request = a_request;
        IF FOUND THEN
            EXIT;
        END IF;
        SELECT * INTO s FROM {schema}.sessions WHERE id = a_session;
        IF NOT {schema}.is_live(s) THEN
            RETURN 'no session';
        END IF;
        IF a_request < s.floor THEN
            RETURN 'done';
        END IF;
        INSERT INTO {schema}.requests (session, request) VALUES (a_session, a_request)
        ON CONFLICT DO NOTHING;
        IF FOUND THEN
            RETURN 'done';
        END IF;
    END LOOP;
    IF q.name IS NOT NULL THEN
        PERFORM {schema}.take_row(q.name);
        SELECT token IS NOT NULL INTO is_held FROM {schema}.requests
        WHERE session = a_session AND request = a_request;
        UPDATE {schema}.requests SET name = NULL, token = NULL
        WHERE session = a_session AND request = a_request;
        PERFORM {schema}.settle(q.name, coalesce(is_held, false));
    END IF;
    RETURN 'done';
END
$$;

CREATE FUNCTION {schema}.set_value(
    a_session bigint, a_token bigint, a_number bigint, n bytea, a_value bytea
) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    s {schema}.sessions;
    is_held boolean;
BEGIN
    PERFORM {schema}.take_row(n);
    SELECT * INTO s FROM {schema}.sessions WHERE id = a_session;
    UPDATE {schema}.requests SET written = greatest(written, a_number)
    WHERE session = a_session AND name = n AND token = a_token AND written < a_number
    AND {schema}.is_live(s);
    IF FOUND THEN
        UPDATE {schema}.locks SET value = a_value WHERE name = n;
        PERFORM {schema}.settle(n, true);
        IF a_value = '' THEN
            PERFORM pg_notify({channel}, encode(n, 'hex'));
        END IF;
        RETURN 'done';
    END IF;
    SELECT count(*) > 0 INTO is_held FROM {schema}.requests
    WHERE session = a_session AND name = n AND token = a_token;
    PERFORM {schema}.settle(n, false);
    RETURN CASE
        WHEN NOT {schema}.is_live(s) THEN 'no session'
        WHEN is_held THEN 'done'
        ELSE 'not held'
    END;
END
$$;

-- Gives back what an ended session holds and waits for.
CREATE FUNCTION {schema}.settle_session(a_session bigint) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    names bytea[];
    n bytea;
BEGIN
    SELECT array_agg(DISTINCT name ORDER BY name) INTO names
    FROM {schema}.requests WHERE session = a_session AND name IS NOT NULL;
    FOREACH n IN ARRAY coalesce(names, '{}') LOOP
        PERFORM {schema}.take_row(n);
    END LOOP;
    FOREACH n IN ARRAY coalesce(names, '{}') LOOP
        PERFORM {schema}.settle(n, false);
    END LOOP;
END
$$;

-- One row for each holder; one without a session if nobody holds the lock.
CREATE FUNCTION {schema}.view(n bytea) RETURNS TABLE (
    session bigint, request bigint, token bigint, mode smallint, slots bigint,
    waiters bigint, is_delayed boolean, value bytea, version bigint
) LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (
        SELECT FROM {schema}.requests r LEFT JOIN {schema}.sessions x ON x.id = r.session
        WHERE r.name = n
        AND (x.id IS NULL OR x.is_ended OR x.expires_at <= clock_timestamp())
    ) OR EXISTS (
        SELECT FROM {schema}.locks l WHERE l.name = n AND l.delayed_until <= clock_timestamp()
    ) THEN
        PERFORM {schema}.take_row(n);
        PERFORM {schema}.settle(n, false);
    END IF;
    RETURN QUERY
    SELECT r.session, r.request, r.token, r.mode, r.slots,
        (SELECT count(*) FROM {schema}.requests w WHERE w.name = n AND w.token IS NULL),
        l.delayed_until IS NOT NULL, l.value, l.version
    FROM {schema}.locks l
    LEFT JOIN {schema}.requests r ON r.name = l.name AND r.token IS NOT NULL
    WHERE l.name = n ORDER BY r.token;
END
$$;

-- Frees what dead sessions have left where nobody else looks; returns whether there is more.
CREATE FUNCTION {schema}.sweep() RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    n bytea;
BEGIN
    SELECT r.name INTO n
    FROM {schema}.requests r LEFT JOIN {schema}.sessions x ON x.id = r.session
    WHERE r.name IS NOT NULL
    AND (x.id IS NULL OR x.is_ended OR x.expires_at <= clock_timestamp()) LIMIT 1;
    IF FOUND THEN
        PERFORM {schema}.take_row(n);
        PERFORM {schema}.settle(n, false);
        RETURN true;
    END IF;
    DELETE FROM {schema}.locks l USING (
        SELECT d.name FROM {schema}.locks d
        WHERE d.value = '' AND d.delayed_until <= clock_timestamp()
        LIMIT 100 FOR UPDATE SKIP LOCKED
    ) o
    WHERE l.name = o.name AND NOT EXISTS (SELECT FROM {schema}.requests r WHERE r.name = l.name);
    DELETE FROM {schema}.sessions x USING (
        SELECT d.id FROM {schema}.sessions d
        WHERE (d.is_ended OR d.expires_at <= clock_timestamp())
        ORDER BY d.id LIMIT 100 FOR UPDATE SKIP LOCKED
    ) o
    WHERE x.id = o.id
    AND NOT EXISTS (SELECT FROM {schema}.requests r WHERE r.session = x.id AND r.name IS NOT NULL);
    DELETE FROM {schema}.requests r
    WHERE r.name IS NULL AND NOT EXISTS (SELECT FROM {schema}.sessions x WHERE x.id = r.session);
    RETURN false;
END
$$;

CREATE TABLE {schema}.format (version integer PRIMARY KEY);
INSERT INTO {schema}.format VALUES (1);
