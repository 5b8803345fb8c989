package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The two systems; more may come.
const (
	knarrName = "knarr"
	peerName  = "peer"
)

// results is the JSON document of a bench.
type results struct {
	Schema  int                `json:"schema"`
	Time    time.Time          `json:"time"`
	Machine machine            `json:"machine"`
	Systems map[string]*system `json:"systems"`
	// Remarks are what went differently from what a figure promises, such as a
	// pod that a warm restart did not leave alone.
	Remarks []string `json:"remarks,omitempty"`
}

type machine struct {
	CPUs   int    `json:"cpus"`
	CPU    string `json:"cpu"`
	Memory int64  `json:"memory"` // bytes
	Kernel string `json:"kernel"`
}

// system is one of those that are compared.
type system struct {
	Version string `json:"version"`
	// Samples by the key of their metric, one for each run, in its unit.
	Samples map[string][]float64 `json:"samples"`
	// Memory is each program's share of idle.pss in MiB, of the last run.
	Memory map[string]float64 `json:"memory,omitempty"`
}

const schema = 1

func newResults(now time.Time) *results {
	return &results{Schema: schema, Time: now.UTC().Truncate(time.Second), Machine: thisMachine(), Systems: map[string]*system{}}
}

func (r *results) of(name string) *system {
	s, ok := r.Systems[name]
	if !ok {
		s = &system{Samples: map[string][]float64{}}
		r.Systems[name] = s
	}
	return s
}

func (s *system) add(key string, value float64) { s.Samples[key] = append(s.Samples[key], value) }

func (r *results) write(path string) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	// In one step: a file that is there is whole.
	tmp := path + ".new"
	if err := os.WriteFile(tmp, append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	return nil
}

func readResults(path string) (*results, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read results: %w", err)
	}
	var r results
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, fmt.Errorf("read results %s: %w", path, err)
	}
	if r.Schema != schema {
		return nil, fmt.Errorf("read results %s: schema is %d, this program knows %d: measure again", path, r.Schema, schema)
	}
	return &r, nil
}

// thisMachine leaves empty what it can't find out: it only serves readers.
func thisMachine() machine {
	m := machine{CPUs: runtime.NumCPU()}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		m.Memory = int64(info.Totalram) * int64(info.Unit)
	}
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		m.Kernel = unix.ByteSliceToString(uts.Release[:])
	}
	cpus, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(cpus)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			m.CPU = strings.TrimSpace(value)
			break
		}
	}
	return m
}
