package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// probe does the same again and again, whether or not the time before has ended,
// and writes a line for each time: a number, how long it took, and "ok" or what
// went wrong.
func probe(ctx context.Context, fs *flag.FlagSet, args []string) error {
	every := fs.Duration("every", 50*time.Millisecond, "")
	timeout := fs.Duration("timeout", 5*time.Second, "")
	plain, err := parse(fs, args, 2, 2)
	if err != nil {
		return err
	}
	try := map[string]func(context.Context, string) error{"get": probeGet, "lookup": probeLookup}[plain[0]]
	if try == nil {
		fs.Usage()
		return exitCode(2)
	}
	for i := 0; pause(ctx, *every); i++ {
		go func() {
			start, result := time.Now(), "ok"
			limited, cancel := context.WithTimeout(ctx, *timeout)
			defer cancel()
			if err := try(limited, plain[1]); err != nil {
				result = err.Error()
			}
			if ctx.Err() == nil {
				fmt.Println(i, time.Since(start).Round(time.Microsecond), result)
			}
		}()
	}
	return nil
}

func probeGet(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("answered %s", resp.Status)
	}
	return nil
}

func probeLookup(ctx context.Context, name string) error {
	_, err := (&net.Resolver{PreferGo: true}).LookupHost(ctx, name)
	return err
}
