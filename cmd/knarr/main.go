// Knarr is a whole Kubernetes in one file and one process.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/knarr-dev/knarr/pkg/cli"
	"github.com/knarr-dev/knarr/pkg/throwaway/lab"
)

func main() {
	// A lab host's first process is this executable under another name.
	if lab.MaybeInit() {
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(cli.Execute(ctx, cli.Builtin(), cli.Dispatch(cli.Arguments())))
}
