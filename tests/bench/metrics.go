package main

// A metric is one figure. Its key is that of the samples in results.
type metric struct {
	key   string
	title string
	unit  string
	// higher tells that more is better.
	higher bool
	// limit is what Knarr's median may be at most, 0 for any.
	limit float64
	// factor is how many times better than the peer Knarr must be, 0 for any.
	factor float64
}

// A table groups the metrics of one kind.
type table struct {
	title   string
	metrics []metric
}

// tables is the catalogue of all figures, in the order they are shown.
func tables() []table {
	return []table{
		{"Start on an empty data dir", []metric{
			{key: "start.api", title: "exec → API ready", unit: "s", limit: 1.0},
			{key: "start.node", title: "exec → node Ready", unit: "s", limit: 1.3},
			{key: "start.accepted", title: "exec → first pod accepted", unit: "s"},
			{key: "start.running", title: "exec → first pod Running", unit: "s", limit: 2.5, factor: 4},
		}},
		{"The same, the bundle not yet unpacked", []metric{
			{key: "packed.api", title: "exec → API ready", unit: "s"},
			{key: "packed.node", title: "exec → node Ready", unit: "s"},
			{key: "packed.accepted", title: "exec → first pod accepted", unit: "s"},
			{key: "packed.running", title: "exec → first pod Running", unit: "s"},
		}},
		{"Restart, a pod running", []metric{
			{key: "warm.api", title: "exec → API ready", unit: "s", limit: 1.0},
		}},
		{"Planned restart (SIGHUP), a pod looking up names", []metric{
			{key: "restart.lookup", title: "longest look-up", unit: "s", limit: 1.0},
			{key: "restart.failed", title: "look-ups that failed", unit: "look-ups"},
		}},
		{"Ten seconds of absence, a pod logging 1 MB/s", []metric{
			{key: "absence.blocked", title: "longest write of the pod", unit: "s"},
			{key: "absence.lost", title: "lines lost", unit: "lines"},
		}},
		{"Idle, one pod, 120 s to 180 s after start", []metric{
			{key: "idle.pss", title: "memory of all processes, PSS", unit: "MiB", limit: 340, factor: 2},
			{key: "idle.rss", title: "memory of all processes, RSS", unit: "MiB"},
			{key: "idle.cpu", title: "CPU", unit: "% of a core", limit: 2.5},
			{key: "idle.written", title: "written to disk", unit: "KiB/min"},
			{key: "idle.writes", title: "write requests", unit: "1/min"},
			{key: "idle.flushes", title: "cache flushes", unit: "1/min"},
		}},
		{"An agent: a second machine joins; then idle, one pod, 120 s to 180 s after its start", []metric{
			{key: "agent.node", title: "exec → joined, node Ready", unit: "s", limit: 1.5},
			{key: "agent.running", title: "exec → first pod on it Running", unit: "s", limit: 2.5},
			{key: "agent.pss", title: "memory of all processes, PSS", unit: "MiB"},
			{key: "agent.knarr", title: "without shims and the pod", unit: "MiB", limit: 110},
			{key: "agent.cpu", title: "CPU", unit: "% of a core", limit: 1},
			{key: "agent.written", title: "written to disk", unit: "KiB/min", limit: 20},
			{key: "agent.flushes", title: "cache flushes", unit: "1/min"},
			{key: "agent.wire", title: "on the wire, both ways", unit: "KiB/s", limit: 3},
		}},
		addonTable(),
		{"Cluster DNS: 16 clients on the node, beside the program coredns as the peer", []metric{
			{key: "dns.rate", title: "answers", unit: "1/s", higher: true},
			{key: "dns.p50", title: "an answer, median", unit: "ms"},
			{key: "dns.p99", title: "an answer, 99th percentile", unit: "ms"},
		}},
		{"Throwaway clusters, from the command's start to its end", []metric{
			{key: "throwaway.true", title: "knarr run -- true", unit: "s", limit: 2.0},
			{key: "throwaway.running", title: "knarr run → first pod Running", unit: "s", limit: 2.8},
			{key: "throwaway.pod", title: "knarr run until a pod is Running, and its end", unit: "s"},
			{key: "throwaway.up", title: "knarr up --nodes 3", unit: "s", limit: 5},
			{key: "throwaway.down", title: "knarr down", unit: "s"},
		}},
		{"In a Go program: knarrtest, and envtest with upstream's kube-apiserver and etcd", []metric{
			{key: "embedded.start", title: "Start", unit: "s", limit: 1.0, factor: 2},
			{key: "embedded.second", title: "Start of a second one in the process", unit: "s", limit: 0.7},
			{key: "embedded.close", title: "Close", unit: "s", limit: 0.5},
		}},
		{"knarr server --control-plane-only, memory a minute after it is ready", []metric{
			{key: "apart.ready", title: "exec → ready", unit: "s", limit: 0.8},
			{key: "apart.pss", title: "memory, PSS", unit: "MiB", limit: 170},
		}},
		{"2,000 ConfigMaps, 16 clients, durable", loadMetrics("load")},
		{"The same with --datastore-synchronous=normal", loadMetrics("normal")},
		{"Size", []metric{
			{key: "size.file", title: "executables", unit: "MiB"},
			{key: "size.zstd", title: "the same by zstd -19", unit: "MiB"},
		}},
	}
}

func loadMetrics(prefix string) []metric {
	var ms []metric
	for _, op := range []string{"creates", "gets", "updates"} {
		ms = append(ms,
			metric{key: prefix + "." + op, title: op, unit: "1/s", higher: true},
			metric{key: prefix + "." + op + ".p50", title: op + ", p50", unit: "ms"},
			metric{key: prefix + "." + op + ".p99", title: op + ", p99", unit: "ms"},
		)
	}
	return append(ms, metric{key: prefix + ".delete", title: "collection deleted", unit: "s"})
}
