-- For wrk: asks for PATH with <id> replaced by the ids of a file, one after the other, from a drawn place on.
-- Usage: wrk ... -s load.lua URL -- PATH FILE. Prints its figures as one line of JSON.

local requests, place = {}, 0

function init(args)
  for id in io.lines(args[2]) do
    requests[#requests + 1] = wrk.format("GET", (args[1]:gsub("<id>", id)))
  end
  math.randomseed(os.time())
  place = math.random(#requests)
end

function request()
  place = place % #requests + 1
  return requests[place]
end

function done(summary, latency, _)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  print(string.format(
    '{"requests": %d, "failed": %d, "seconds": %.6f, "p50_ms": %.3f, "p99_ms": %.3f}',
    summary.requests, failed, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3
  ))
end
