package main

import (
	"context"
	"flag"
	"fmt"
	"os"
)

// whoAmI tells a program apart that got its owner's rights by the set-uid bit.
func whoAmI(_ context.Context, fs *flag.FlagSet, args []string) error {
	if _, err := parse(fs, args, 0, 0); err != nil {
		return err
	}
	fmt.Println(os.Geteuid(), os.Getuid())
	return nil
}
