// Command store measures Knarr's stores beside etcd, each in a process of its own
// on the same disk, in turn:
//
//	go run ./tests/bench/store                  # all figures, 3 runs
//	go run ./tests/bench/store --objects 10000  # a smaller store
//
// All are asked by an etcd client in their own process, without a network: etcd's
// server, kine's driver and Knarr's engine. It needs ext4 or xfs, some GB of it,
// and an otherwise quiet machine.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
)

type options struct {
	Runs, Objects, History int
	Systems                []string
	Work, Into             string
	keep                   bool
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil && !errors.Is(err, pflag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench of stores:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	var o options
	var child string
	f := pflag.NewFlagSet("store", pflag.ContinueOnError)
	f.IntVar(&o.Runs, "runs", 3, "runs of each measurement")
	f.IntVar(&o.Objects, "objects", 100_000, "how many objects of 1 KiB the store has")
	f.IntVar(&o.History, "history", 900_000, "how many revisions of them a start meets")
	f.StringSliceVar(&o.Systems, "systems", []string{"etcd", "sqlite", "kine-sqlite"}, "stores to measure")
	f.StringVar(&o.Work, "work", "build/bench-store", "folder for the stores")
	f.StringVar(&o.Into, "into", "", "also put the table into this Markdown file, between its markers")
	f.BoolVar(&o.keep, "keep", false, "keep the stores")
	f.StringVar(&child, "child", "", "")
	if err := errors.Join(f.MarkHidden("child"), f.Parse(args)); err != nil {
		return err
	}
	if child != "" {
		var s spec
		if err := json.Unmarshal([]byte(child), &s); err != nil {
			return err
		}
		return s.run(ctx)
	}
	samples, err := measure(ctx, o)
	if err != nil {
		return err
	}
	table := report(o, samples)
	fmt.Print(table)
	if o.Into == "" {
		return nil
	}
	return insert(o.Into, table)
}

// measure runs every phase of every system in turn, and returns the samples by
// figure and system.
func measure(ctx context.Context, o options) (map[string]map[string][]float64, error) {
	samples := map[string]map[string][]float64{}
	for n := range o.Runs {
		for _, phase := range []string{"load", "start", "long"} {
			for _, system := range o.Systems {
				// A million revisions take kine the better part of an hour, and the long
				// history of one run is that of all.
				if phase == "long" && (system == "kine-sqlite" || n > 0) {
					continue
				}
				s := spec{System: system, Phase: phase, Dir: filepath.Join(o.Work, system), Objects: o.Objects, History: o.History}
				fmt.Fprintf(os.Stderr, "run %d: %s, %s\n", n+1, phase, system)
				figures, err := s.inChild(ctx)
				if err != nil {
					return nil, fmt.Errorf("measure %s, %s: %w", system, phase, err)
				}
				for name, value := range figures {
					if samples[name] == nil {
						samples[name] = map[string][]float64{}
					}
					samples[name][system] = append(samples[name][system], value)
				}
			}
		}
		if !o.keep {
			if err := os.RemoveAll(o.Work); err != nil {
				return nil, err
			}
		}
	}
	return samples, nil
}

// inChild runs a phase in a process of its own, whose memory is that of the store.
func (s spec) inChild(ctx context.Context) (map[string]float64, error) {
	text, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	unix.Sync() // what the last one left to be written is not this one's to wait for
	cmd := exec.CommandContext(ctx, exe, "--child", string(text))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, err
	}
	var figures map[string]float64
	return figures, json.Unmarshal(out, &figures)
}

// figure is a line of the table.
type figure struct{ name, text, format string }

func figures() []figure {
	return []figure{
		{"updates-1", "updates a second, 1 client", "%.0f"},
		{"p99-1", "p99 of these, ms", "%.2f"},
		{"updates-16", "updates a second, 16 clients", "%.0f"},
		{"p99-16", "p99 of these, ms", "%.2f"},
		{"updates-64", "updates a second, 64 clients", "%.0f"},
		{"p99-64", "p99 of these, ms", "%.2f"},
		{"backup-p99-1", "p99 of updates during a backup, 1 client, ms", "%.2f"},
		{"backup-max-1", "longest of these, ms", "%.1f"},
		{"backup-p99-16", "p99 of updates during a backup, 16 clients, ms", "%.2f"},
		{"backup-max-16", "longest of these, ms", "%.1f"},
		{"backup-took", "the copy takes, ms", "%.0f"},
		{"watch-p50", "put to event, 100 watches: p50, ms", "%.2f"},
		{"watch-p99", "p99, ms", "%.2f"},
		{"list-500", "list 500 of all, ms", "%.1f"},
		{"list-all", "list all, ms", "%.0f"},
		{"stall", "longest update while it compacts, ms", "%.1f"},
		{"files", "files after that, MB", "%.0f"},
		{"start", "start, ms", "%.0f"},
		{"memory", "anonymous memory after a start, MB", "%.0f"},
		{"start-long", "start with the long history, ms", "%.0f"},
		{"files-long", "files with the long history, MB", "%.0f"},
	}
}

func report(o options, samples map[string]map[string][]float64) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d objects of 1 KiB; the long history has %d revisions more. Medians of %d runs, %d cores, %s.\n\n", o.Objects, o.History, o.Runs, runtime.NumCPU(), runtime.Version())
	t := tabwriter.NewWriter(&b, 0, 0, 1, ' ', tabwriter.Debug)
	fmt.Fprintf(t, "| figure\t %s\t\n| ---", strings.Join(o.Systems, "\t "))
	for range o.Systems {
		fmt.Fprint(t, "\t ---")
	}
	fmt.Fprint(t, "\t\n")
	for _, f := range figures() {
		fmt.Fprintf(t, "| %s", f.text)
		for _, system := range o.Systems {
			values := slices.Sorted(slices.Values(samples[f.name][system]))
			if len(values) == 0 {
				fmt.Fprint(t, "\t -")
				continue
			}
			fmt.Fprintf(t, "\t "+f.format, values[len(values)/2])
		}
		fmt.Fprint(t, "\t\n")
	}
	t.Flush()
	return b.String()
}

const begin, end = "<!-- bench-store -->\n", "<!-- /bench-store -->\n"

// insert puts a table between a file's markers.
func insert(path, table string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(text), begin)
	_, after, closed := strings.Cut(rest, end)
	if !ok || !closed {
		return fmt.Errorf("%s has no lines %q and %q", path, begin, end)
	}
	return os.WriteFile(path, []byte(before+begin+table+end+after), 0o644)
}
