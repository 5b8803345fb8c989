// Package ociruntime knows the container runtimes beside runc that a machine may
// have, and finds those that it has.
package ociruntime

import (
	"os"
	"path/filepath"
	"slices"
)

// Runtime is one that pods choose by their runtimeClassName.
type Runtime struct {
	// Class is the RuntimeClass' name, as the runtime's own documentation has it.
	Class string
	// Handler is what containerd and RuntimeClasses call it.
	Handler string
	// Type is containerd's name for the kind of shim that runs it.
	Type string
	// file is what is looked for: a program like runc, or a shim.
	file string
	shim bool

	// Path is where the file was found.
	Path string
}

// RuncType is the shim that runs runc, and whatever takes runc's arguments.
const RuncType = "io.containerd.runc.v2"

// IsShim tells whether Path is a shim of the runtime's own. Else it is a program
// that runc's shim runs in runc's place.
func (r Runtime) IsShim() bool { return r.shim }

// Known are all runtimes that are looked for; see k3s' documentation ("Alternative
// Container Runtime Support"), which has the same names for the same programs.
func Known() []Runtime {
	program := func(name, file string) Runtime {
		return Runtime{Class: name, Handler: name, Type: RuncType, file: file}
	}
	shim := func(class, handler, version string) Runtime {
		return Runtime{Class: class, Handler: handler, Type: "io.containerd." + handler + "." + version, file: "containerd-shim-" + handler + "-" + version, shim: true}
	}
	return []Runtime{
		program("crun", "crun"),
		program("youki", "youki"),
		program("nvidia", "nvidia-container-runtime"),
		program("nvidia-cdi", "nvidia-container-runtime.cdi"),
		shim("kata", "kata", "v2"),
		shim("gvisor", "runsc", "v1"),
		// WebAssembly.
		shim("spin", "spin", "v2"),
		shim("slight", "slight", "v1"),
		shim("lunatic", "lunatic", "v1"),
		shim("wws", "wws", "v1"),
		shim("wasmedge", "wasmedge", "v1"),
		shim("wasmer", "wasmer", "v1"),
		shim("wasmtime", "wasmtime", "v1"),
	}
}

// Find returns the runtimes that are in the folders of path, a list as PATH has
// it, or where their packages put them though PATH may not name it.
func Find(path string) []Runtime {
	return find(append(filepath.SplitList(path),
		"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin",
		"/usr/local/nvidia/toolkit", "/opt/kata/bin", "/opt/kwasm/bin"))
}

func find(dirs []string) []Runtime {
	var found []Runtime
	for _, r := range Known() {
		i := slices.IndexFunc(dirs, func(dir string) bool {
			st, err := os.Stat(filepath.Join(dir, r.file))
			return dir != "" && err == nil && st.Mode().IsRegular() && st.Mode().Perm()&0o111 != 0
		})
		if i < 0 {
			continue
		}
		r.Path = filepath.Join(dirs[i], r.file)
		found = append(found, r)
	}
	return found
}
