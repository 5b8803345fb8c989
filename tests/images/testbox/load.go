package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"strconv"
	"time"
)

// lineLength is that of every line spew writes, its newline included.
const lineLength = 100

// spew writes numbered lines at an even rate. What it could not write while
// stdout was blocked it does not make up for. The longest time that a write
// took goes to the report file, at each new longest, and to stderr at the end.
func spew(ctx context.Context, fs *flag.FlagSet, args []string) error {
	rate := fs.String("rate", "1MB/s", "")
	period := fs.Duration("for", 0, "")
	report := fs.String("report", "", "")
	if _, err := parse(fs, args, 0, 0); err != nil {
		return err
	}
	perSecond, err := size(*rate)
	if err != nil {
		return err
	}
	if *period > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, *period)
		defer cancel()
	}
	const every = 10 * time.Millisecond
	tick := time.NewTicker(every)
	defer tick.Stop()
	var longest time.Duration
	line, due := 0, 0.0
	for {
		select {
		case <-ctx.Done():
			fmt.Fprintf(os.Stderr, "lines %d longest %s\n", line, longest)
			return nil
		case <-tick.C:
		}
		var out []byte
		for due += float64(perSecond) * every.Seconds(); due >= lineLength; due -= lineLength {
			out = fmt.Appendf(out, "%012d %086d\n", line, 0)
			line++
		}
		start := time.Now()
		if _, err := os.Stdout.Write(out); err != nil {
			return err
		}
		if took := time.Since(start); took > longest {
			longest = took
			if *report != "" {
				if err := os.WriteFile(*report, fmt.Appendf(nil, "%s\n", longest), 0o644); err != nil {
					return err
				}
			}
		}
	}
}

func alloc(ctx context.Context, fs *flag.FlagSet, args []string) error {
	plain, err := parse(fs, args, 1, 1)
	if err != nil {
		return err
	}
	n, err := size(plain[0])
	if err != nil {
		return err
	}
	memory := make([]byte, n)
	for i := 0; i < n; i += os.Getpagesize() {
		memory[i] = 1
	}
	fmt.Println("allocated", n)
	<-ctx.Done()
	memory[0] = 2
	return nil
}

func sleep(ctx context.Context, fs *flag.FlagSet, args []string) error {
	plain, err := parse(fs, args, 0, 1)
	if err != nil {
		return err
	}
	if len(plain) == 0 {
		<-ctx.Done()
		return nil
	}
	d, err := time.ParseDuration(plain[0])
	if err != nil {
		return err
	}
	pause(ctx, d)
	return nil
}

func exit(ctx context.Context, fs *flag.FlagSet, args []string) error {
	after := fs.Duration("after", 0, "")
	plain, err := parse(fs, args, 1, 1)
	if err != nil {
		return err
	}
	code, err := strconv.Atoi(plain[0])
	if err != nil {
		return err
	}
	pause(ctx, *after)
	return exitCode(code)
}

func sigtermLog(ctx context.Context, fs *flag.FlagSet, args []string) error {
	grace := fs.Duration("grace", time.Second, "")
	if _, err := parse(fs, args, 0, 0); err != nil {
		return err
	}
	fmt.Println("waiting for SIGTERM")
	<-ctx.Done()
	fmt.Println("got SIGTERM")
	pause(context.Background(), *grace)
	fmt.Println("bye")
	return nil
}
