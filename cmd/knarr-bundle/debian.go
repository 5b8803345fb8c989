package main

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"path"
	"slices"

	"github.com/knarr-dev/knarr/pkg/bundle/debian"
	"github.com/knarr-dev/knarr/pkg/bundle/pack"
)

// fetchPackages unpacks nft, the libraries it needs and those that programs of
// another machine are linked with. It returns nft's version, too.
func fetchPackages(ctx context.Context, work string, t target, licenses *bytes.Buffer) (root *debian.Root, version string, err error) {
	root, err = debian.Unpack(ctx, work, t.debian, slices.Concat(packages(), t.libraries())...)
	if err != nil {
		return nil, "", err
	}
	for _, p := range root.Packages {
		if p.Name == "nftables" {
			version = p.Version
		}
		text, err := root.Copyright(p.Name)
		if err != nil {
			return nil, "", err
		}
		fmt.Fprintf(licenses, "==== Debian %s %s\n\n%s\n", p.Name, p.Version, text)
	}
	return root, version, nil
}

// loaderName is what a running nft is called in the process list: the loader is
// what is executed. It is unlike any other program's, so that changes of the
// rules by others can be told from ours.
const loaderName = "knarr-nft"

// takeNFT collects Debian's nft with every library it needs and the loader, for
// lib/nft. The loader is stored as knarr-nft, which is what our launcher runs on
// every processor.
func takeNFT(root *debian.Root) ([]pack.File, error) {
	const program = "nft"
	objects, err := root.Closure(program)
	if err != nil {
		return nil, err
	}
	var files []pack.File
	for _, o := range objects {
		as, mode := o.Name, fs.FileMode(0o644)
		if o.Loader != "" {
			as = loaderName
		}
		if o.Loader != "" || o.Name == program {
			mode = 0o755
		}
		files = append(files, pack.File{Name: path.Join("lib/nft", as), Mode: mode, Data: o.Data})
	}
	return files, nil
}
