-- For wrk: requests PATH with <id> replaced by each id of a file in turn, from a random line on.
-- Usage: wrk ... -s load.lua URL -- PATH FILE. Prints the result as one line of JSON.

local requests, index = {}, 0

function init(args)
  for id in io.lines(args[2]) do
    requests[#requests + 1] = wrk.format("GET", (args[1]:gsub("<id>", function() return id end)))
  end
  math.randomseed(os.time())
  index = math.random(#requests)
end

function request()
  index = index % #requests + 1
  return requests[index]
end

function done(summary, latency, _)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  print(string.format(
    '{"requests": %d, "failed": %d, "seconds": %.6f, "p50_ms": %.3f, "p99_ms": %.3f}',
    summary.requests, failed, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3
  ))
end
