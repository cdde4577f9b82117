-- An agent's counted state as its hash has it, for scripts that change a part of it. Nil where there is none, or where
-- somebody made something else of the key: such an agent must not hold up all others.

local function read_state(agent_id)
    local fields = redis.pcall('HMGET', agent_key(agent_id), 'status', 'indexed', 'machine', 'cordon', 'last_id',
        'changes')
    if fields.err or not fields[1] then return nil end
    return {
        status = fields[1],
        indexed = fields[2] or '',
        machine = fields[3],
        cordoned = fields[4] and fields[4] ~= '' or false,
        last_id = fields[5],
        changes = fields[6],
    }
end

-- Writes what `changes` says is different, and brings sets, totals and feed in line with it.
local function change_state(kind, agent_id, state, changes)
    local new = {machine = state.machine, status = changes.status or state.status,
        indexed = changes.indexed or state.indexed, cordoned = state.cordoned}
    if changes.cordoned ~= nil then new.cordoned = changes.cordoned end
    redis.call('HSET', agent_key(agent_id), 'status', new.status, 'indexed', new.indexed)
    move(agent_id, state.indexed, new.indexed)
    recount(agent_id, state, new)
    local agent_type, pool = parse_machine(state.machine)
    publish(kind, agent_id, agent_type, pool, new.indexed, new.status)
end
