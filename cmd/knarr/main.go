// Knarr is a whole Kubernetes in one file and one process.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/knarr-dev/knarr/pkg/cli"
	"github.com/knarr-dev/knarr/pkg/pidone"
	"github.com/knarr-dev/knarr/pkg/throwaway/lab"
	"github.com/knarr-dev/knarr/pkg/throwaway/userns"
)

func main() {
	// A lab host's first process is this executable under another name, and one that
	// is to be root of a user namespace starts twice.
	if userns.MaybeInit() || lab.MaybeInit() {
		return
	}
	args := cli.Arguments()
	if code, first, err := pidone.Run(args); err != nil {
		fmt.Fprintln(os.Stderr, "knarr:", err)
		os.Exit(1)
	} else if first {
		os.Exit(code)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(cli.Execute(ctx, cli.Builtin(), cli.Dispatch(args)))
}
