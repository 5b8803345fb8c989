// Command bench measures Knarr, and upstream Kubernetes as separate processes
// (the peer) beside it, in hosts of a lab, in turn:
//
//	go run ./tests/bench                     # all figures, 5 runs: 40 minutes
//	go run ./tests/bench --only start,warm   # some of them
//	go run ./tests/bench --compare old.json new.json
//
//	go run ./tests/bench --only addons --skip-peer   # memory with each add-on off in turn: 26 minutes a run
//	go run ./tests/bench --only addons-start --skip-peer   # their starts: a minute a run
//	go run ./tests/bench --only dns --skip-peer      # cluster DNS beside the program coredns
//
// It needs root, Go, losetup, mkfs.ext4 and zstd, an otherwise quiet machine,
// and dist/knarr, build/bundle and build/images as `make` leaves them. The
// peer's programs are built from their Go modules on first use.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/knarr-dev/knarr/pkg/throwaway/lab"
)

// options are the command line.
type options struct {
	knarr     string
	knarrArgs []string
	bundle    string
	image     string
	work      string
	out       string
	into      string
	runs      int
	idleRuns  int
	only      []string
	skipKnarr bool
	skipPeer  bool
	keepLogs  bool
	buildPeer bool
	compare   bool
	print     string
	args      []string
}

// kinds are what --only knows.
func kinds() []string {
	return append([]string{"start", "packed", "warm", "load", "normal", "restart", "idle", "agent", "throwaway", "embedded", "apart", "size"}, askedFor()...)
}

// askedFor are the kinds that are measured only when --only names them.
func askedFor() []string { return []string{"addons", "addons-start", "dns"} }

func main() {
	if lab.MaybeInit() {
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func parse(args []string) (options, error) {
	var o options
	f := pflag.NewFlagSet("bench", pflag.ContinueOnError)
	f.StringVar(&o.knarr, "knarr", "dist/knarr", "the Knarr to measure")
	f.StringArrayVar(&o.knarrArgs, "knarr-arg", nil, "further argument of knarr server; may be repeated")
	f.StringVar(&o.bundle, "bundle", "build/bundle/bundle.tar.zst", "archive with the peer's runc, shim, CNI plugins and pause image")
	f.StringVar(&o.image, "image", "build/images/test.tar", "archive of knarr.dev/test:1, the first pod's image")
	f.StringVar(&o.work, "work", "build/bench", "folder for disks and logs, on ext4 or xfs")
	f.StringVar(&o.out, "out", "build/bench/results.json", "where to write the samples")
	f.StringVar(&o.into, "into", "", "also put the tables into this Markdown file, between its markers")
	f.IntVar(&o.runs, "runs", 5, "runs of each measurement")
	f.IntVar(&o.idleRuns, "idle-runs", 0, "runs of idle and agent, which take 3 minutes each for each system (default: runs)")
	f.StringSliceVar(&o.only, "only", nil, "measure these alone: "+strings.Join(kinds(), ","))
	f.BoolVar(&o.skipKnarr, "skip-knarr", false, "measure the peer alone")
	f.BoolVar(&o.skipPeer, "skip-peer", false, "measure Knarr alone")
	f.BoolVar(&o.keepLogs, "keep-logs", false, "keep what the programs wrote, not only that of failed runs")
	f.BoolVar(&o.buildPeer, "build-peer", false, "only build the peer's programs")
	f.BoolVar(&o.compare, "compare", false, "compare the results files A and B given as arguments")
	f.StringVar(&o.print, "print", "", "print the tables of a results file")
	f.SortFlags = false
	if err := f.Parse(args); err != nil {
		return o, err
	}
	o.args = f.Args()
	for _, k := range o.only {
		if !slices.Contains(kinds(), k) {
			return o, fmt.Errorf("--only %s: known are %s", k, strings.Join(kinds(), ", "))
		}
	}
	if want := map[bool]int{true: 2}[o.compare]; len(o.args) != want {
		return o, fmt.Errorf("got %d arguments, want %d", len(o.args), want)
	}
	if o.runs < 1 || o.idleRuns < 0 {
		return o, errors.New("--runs and --idle-runs must be positive")
	}
	if o.idleRuns == 0 {
		o.idleRuns = o.runs
	}
	for _, path := range []*string{&o.knarr, &o.bundle, &o.image, &o.work, &o.out} {
		abs, err := filepath.Abs(*path)
		if err != nil {
			return o, err
		}
		*path = abs
	}
	return o, nil
}

func (o options) wants(kind string) bool {
	return len(o.only) == 0 && !slices.Contains(askedFor(), kind) || slices.Contains(o.only, kind)
}

func run(ctx context.Context) error {
	o, err := parse(os.Args[1:])
	if errors.Is(err, pflag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	switch {
	case o.compare:
		a, err := readResults(o.args[0])
		if err != nil {
			return err
		}
		b, err := readResults(o.args[1])
		if err != nil {
			return err
		}
		return printComparison(os.Stdout, a, b)
	case o.print != "":
		r, err := readResults(o.print)
		if err != nil {
			return err
		}
		return o.report(r)
	case o.buildPeer:
		_, err := buildPeer(ctx, o)
		return err
	}
	if err := ownMounts(); err != nil {
		return err
	}
	r, err := measure(ctx, o)
	if len(r.Systems) == 0 {
		return err
	}
	// An interrupted bench keeps what it has.
	return errors.Join(err, r.write(o.out), o.report(r))
}

func (o options) report(r *results) error {
	if o.into != "" {
		if err := updateMarkdown(o.into, r); err != nil {
			return err
		}
	}
	return printTables(os.Stdout, r)
}

const mountsEnv = "KNARR_BENCH_MOUNTS"

// ownMounts runs this program anew in a mount namespace of its own: the disks
// that a run mounts then go with it, even if it is killed.
func ownMounts() error {
	if os.Getenv(mountsEnv) != "" {
		return os.Unsetenv(mountsEnv)
	}
	if os.Geteuid() != 0 {
		return errors.New("namespaces, loop devices and mounts need root: run it with sudo")
	}
	for _, tool := range []string{"losetup", "mkfs.ext4", "zstd"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%w: install it (scripts/deps.sh does)", err)
		}
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("part from the machine's mounts: %w", err)
	}
	err := unix.Exec("/proc/self/exe", os.Args, append(os.Environ(), mountsEnv+"=own"))
	return fmt.Errorf("run again in a mount namespace: %w", err)
}

// command runs a tool of the machine and returns what it printed.
func command(ctx context.Context, dir string, env []string, name string, args ...string) (string, error) {
	c := exec.CommandContext(ctx, name, args...)
	c.Dir, c.Env = dir, append(os.Environ(), env...)
	var out, errs strings.Builder
	c.Stdout, c.Stderr = &out, io.Writer(&errs)
	if err := c.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, strings.TrimSpace(errs.String()))
	}
	return strings.TrimSpace(out.String()), nil
}
