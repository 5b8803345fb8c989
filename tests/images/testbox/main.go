// Command testbox is the program inside Knarr's test image: small servers,
// clients and misbehaviours, each a subcommand. It is static and resolves
// names by Go's resolver, which reads /etc/resolv.conf and needs no C library.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// command runs until it is done or ctx ends, which SIGTERM and SIGINT do.
type command struct {
	usage string
	run   func(ctx context.Context, fs *flag.FlagSet, args []string) error
}

func commands() map[string]command {
	return map[string]command{
		"serve":       {"[--port N] [--body TEXT]: HTTP; answers with TEXT, or the host name", serve},
		"get":         {"URL [--timeout D] [--retry D] [--insecure] [--header K:V]: prints the answer", get},
		"tcpecho":     {"[--port N]: sends back what it gets", tcpEcho},
		"udpecho":     {"[--port N] [--named]: sends back what it gets, after the host name", udpEcho},
		"send":        {"tcp|udp HOST:PORT TEXT [--timeout D] [--retry D] [--from PORT]: prints the answer; --from is for UDP", send},
		"lookup":      {"NAME [host|a|aaaa|srv|ptr|txt|cname] [--server IP:PORT] [--timeout D] [--retry D]", lookup},
		"probe":       {"get URL|lookup NAME [--every D] [--timeout D]: a line for each attempt", probe},
		"waitfor":     {"NAME|HOST:PORT [--timeout D]: until the name resolves or the port answers", waitFor},
		"forward":     {"[--port N] HOST:PORT: leads connections on", forward},
		"grpc-health": {"[--port N]: answers gRPC health checks", grpcHealth},
		"spew":        {"[--rate BYTES] [--for D] [--report FILE]: numbered lines on stdout", spew},
		"alloc":       {"SIZE: touches that much memory, then waits", alloc},
		"sleep":       {"[D]: for D, or until SIGTERM", sleep},
		"exit":        {"CODE [--after D]", exit},
		"schedule":    {"NAME: a scheduler of that name, for its pod's namespace", schedule},
		"sigterm-log": {"[--grace D]: says when SIGTERM comes, ends D later", sigtermLog},
		"webhook":     {"[--port N] [--dir D]: answers API servers' webhooks by TLS", webhook},
		"apiserver":   {"[--port N] [--dir D] [--group G] [--proxy NAME]: an aggregated API", apiServer},
		"whoami":      {": the numbers of the user it acts as, and of the user who started it", whoAmI},
	}
}

// exitCode is an error that only sets the process's exit code.
type exitCode int

func (e exitCode) Error() string { return "exit " + strconv.Itoa(int(e)) }

func main() {
	args := os.Args
	// A link named after a subcommand runs it, as busybox's do.
	if filepath.Base(args[0]) != "testbox" {
		args = append([]string{"testbox"}, args...)
	}
	if len(args) < 2 {
		help()
		os.Exit(2)
	}
	c, ok := commands()[filepath.Base(args[1])]
	if !ok {
		help()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	fs := flag.NewFlagSet(args[1], flag.ExitOnError)
	fs.Usage = func() { fmt.Fprintf(os.Stderr, "testbox %s %s\n", args[1], c.usage) }
	err := c.run(ctx, fs, args[2:])
	var code exitCode
	switch {
	case errors.As(err, &code):
		os.Exit(int(code))
	case err != nil:
		fmt.Fprintf(os.Stderr, "testbox %s: %v\n", args[1], err)
		os.Exit(1)
	}
}

func help() {
	cs := commands()
	var names []string
	for n := range cs {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		fmt.Fprintf(os.Stderr, "testbox %s %s\n", n, cs[n].usage)
	}
}

// parse reads flags before, between and after the plain arguments, and checks
// how many of the latter there are.
func parse(fs *flag.FlagSet, args []string, least, most int) ([]string, error) {
	var plain []string
	for {
		if err := fs.Parse(args); err != nil {
			return nil, err
		}
		args = fs.Args()
		if len(args) == 0 {
			break
		}
		plain = append(plain, args[0])
		args = args[1:]
	}
	if len(plain) < least || len(plain) > most {
		fs.Usage()
		return nil, exitCode(2)
	}
	return plain, nil
}

// size reads bytes with an optional unit: 1000, 64k, 10MB, 1GiB.
func size(s string) (int, error) {
	digits := strings.TrimRight(s, "kKmMgGiBb/s")
	n, err := strconv.Atoi(digits)
	if err != nil {
		return 0, fmt.Errorf("%q is no size", s)
	}
	unit := strings.ToLower(strings.TrimSuffix(s[len(digits):], "/s"))
	base := 1000
	if strings.Contains(unit, "i") {
		base = 1024
	}
	switch {
	case strings.HasPrefix(unit, "k"):
		n *= base
	case strings.HasPrefix(unit, "m"):
		n *= base * base
	case strings.HasPrefix(unit, "g"):
		n *= base * base * base
	}
	return n, nil
}

// pause waits; it reports whether the whole time passed.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// retry tries until it succeeds or most has passed since the first attempt.
// Zero means one attempt.
func retry(ctx context.Context, most time.Duration, try func() error) error {
	end := time.Now().Add(most)
	for {
		err := try()
		if err == nil || ctx.Err() != nil || !time.Now().Before(end) {
			return err
		}
		pause(ctx, 100*time.Millisecond)
	}
}
