package host

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"

	"k8s.io/component-helpers/node/util/sysctl"
)

// Sysctl is a kernel parameter that a node needs.
type Sysctl struct {
	// Name is dotted, as sysctl(8) writes it. A dot inside a link's name is a slash.
	Name  string
	Value string
	// AtLeast accepts a higher number.
	AtLeast bool
	// Helpful parameters are set if they can be; a failure is only logged.
	Helpful bool
	// IfPresent skips a parameter that this kernel does not have.
	IfPresent bool
	// OnlyFrom, if set, leaves the parameter alone unless this is its value.
	OnlyFrom string
}

// Sysctls lists what a node needs: what forwards its pods' packets, what many
// containers need, and what the kubelet would set by itself. Set beforehand,
// the kubelet finds nothing to change, and the old values are on record.
func Sysctls(f Facts, dualStack bool) []Sysctl {
	list := []Sysctl{
		{Name: "net.ipv4.ip_forward", Value: "1"},
		// Without it an answer within one bridge passes by the Service's
		// translation, and comes from an address that the client never asked.
		{Name: "net.bridge.bridge-nf-call-iptables", Value: "1", IfPresent: true},
		{Name: "fs.inotify.max_user_instances", Value: "1024", AtLeast: true, Helpful: true},
		{Name: "fs.inotify.max_user_watches", Value: "524288", AtLeast: true, Helpful: true},
	}
	if dualStack {
		if f.IPv6.Link != "" {
			// A forwarding machine stops heeding routers' announcements, and would
			// lose its default route, unless it is told 2. Before forwarding is on.
			link := strings.ReplaceAll(f.IPv6.Link, ".", "/")
			list = append(list, Sysctl{Name: "net.ipv6.conf." + link + ".accept_ra", Value: "2", OnlyFrom: "1", IfPresent: true})
		}
		list = append(list,
			Sysctl{Name: "net.ipv6.conf.all.forwarding", Value: "1"},
			Sysctl{Name: "net.bridge.bridge-nf-call-ip6tables", Value: "1", IfPresent: true})
	}
	if f.UserNamespace {
		return list
	}
	for _, s := range []struct {
		path  string
		value int
	}{
		{sysctl.VMOvercommitMemory, sysctl.VMOvercommitMemoryAlways},
		{sysctl.VMPanicOnOOM, sysctl.VMPanicOnOOMInvokeOOMKiller},
		{sysctl.KernelPanic, sysctl.KernelPanicRebootTimeout},
		{sysctl.KernelPanicOnOops, sysctl.KernelPanicOnOopsAlways},
		{sysctl.RootMaxKeys, sysctl.RootMaxKeysSetting},
		{sysctl.RootMaxBytes, sysctl.RootMaxBytesSetting},
	} {
		list = append(list, Sysctl{Name: strings.ReplaceAll(s.path, "/", "."), Value: strconv.Itoa(s.value)})
	}
	return list
}

// SetSysctls sets what is not right yet, after recording the old values. On a
// machine where all is right it writes nothing, not even the record.
func (l *Ledger) SetSysctls(list []Sysctl) error {
	var wrong []Sysctl
	var changes []Change
	var errs []error
	for _, s := range list {
		b, err := os.ReadFile(l.machine.path(sysctlPath(s.Name)))
		if err != nil {
			if !s.IfPresent && !s.Helpful {
				errs = append(errs, fmt.Errorf("read sysctl %s (its kernel module may be missing): %w", s.Name, err))
			}
			continue
		}
		old := strings.TrimSpace(string(b))
		if s.satisfied(old) || s.OnlyFrom != "" && old != s.OnlyFrom {
			continue
		}
		wrong = append(wrong, s)
		changes = append(changes, Change{Kind: KindSysctl, Name: s.Name, Old: old, New: s.Value})
	}
	if err := l.Record(changes...); err != nil {
		return errors.Join(append(errs, err)...)
	}
	for i, s := range wrong {
		err := setKernelValue(l.machine.path(sysctlPath(s.Name)), s.Value)
		if err != nil && s.Helpful {
			slog.Warn("a kernel parameter stays low; many pods on this node may exhaust it", "sysctl", s.Name, "value", changes[i].Old, "wanted", s.Value, "error", err)
			continue
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("set sysctl %s=%s (set it on the machine itself if this is a container): %w", s.Name, s.Value, err))
		}
	}
	return errors.Join(errs...)
}

func (s Sysctl) satisfied(value string) bool {
	if s.AtLeast {
		have, err1 := strconv.Atoi(value)
		want, err2 := strconv.Atoi(s.Value)
		return err1 == nil && err2 == nil && have >= want
	}
	return value == s.Value
}

// sysctlPath turns net.ipv4.ip_forward into its file; a slash in the name
// stands for a dot in a link's name.
func sysctlPath(name string) string {
	return "/proc/sys/" + strings.NewReplacer(".", "/", "/", ".").Replace(name)
}

func setKernelValue(path, value string) error {
	return os.WriteFile(path, []byte(value+"\n"), 0o644)
}
