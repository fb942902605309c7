-- wrk -s load.lua URL -- BODIES KEY: POST the lines of the file BODIES in turn; the result as one line of JSON.
local pool, turn = {}, 0

function init(args)
  local headers = { ["Content-Type"] = "application/json", ["Authorization"] = "Bearer " .. args[2] }
  for line in io.lines(args[1]) do
    pool[#pool + 1] = wrk.format("POST", wrk.path, headers, line)
  end
end

function request()
  turn = turn % #pool + 1
  return pool[turn]
end

function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    'datapath: {"requests":%d,"duration_s":%.6f,"p50_ms":%.3f,"p99_ms":%.3f,"bytes":%d,' ..
    '"status_errors":%d,"socket_errors":%d,"timeouts":%d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1000, latency:percentile(99) / 1000,
    summary.bytes, e.status, e.connect + e.read + e.write, e.timeout))
end
