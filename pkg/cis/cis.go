// Package cis checks a server by the items of the CIS Kubernetes Benchmark, as
// kube-bench numbers them in its list cis-1.12, the newest of that kind when this
// was written.
//
// kube-bench itself looks for processes and files that Knarr does not have. What
// it asks for can be told from inside: by the flags that Knarr's components run
// with, the kubelet's configuration, files, sockets and the cluster's roles.
package cis

import (
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"text/tabwriter"

	rbacv1 "k8s.io/api/rbac/v1"
)

// Benchmark names the list.
const Benchmark = "cis-1.12"

// Status is how an item stands.
type Status string

const (
	// Pass and Fail are what they say.
	Pass Status = "pass"
	Fail Status = "fail"
	// Profile: the item narrows what workloads may do, and is met with --profile cis.
	Profile Status = "profile"
	// Workloads: it depends on what users run, and is theirs to look at.
	Workloads Status = "workloads"
	// None: there is nothing here that it could be about, or it is met otherwise.
	None Status = "not applicable"
)

// Result is an item and how it stands.
type Result struct {
	ID     string `json:"id"`
	Text   string `json:"text"`
	Status Status `json:"status"`
	// Reason tells why; empty for a plain pass.
	Reason string `json:"reason,omitempty"`
}

// File is what is known of a file or folder.
type File struct {
	Path string
	Mode fs.FileMode
	// UID and GID own it.
	UID, GID uint32
}

// Facts are what the items are judged by.
type Facts struct {
	// Flags are the effective flags of kube-apiserver, kube-controller-manager and
	// kube-scheduler, by component and name.
	Flags map[string]map[string]string
	// Kubelet is the kubelet's configuration, as its /configz shows it. It is nil
	// on a server that is no node.
	Kubelet map[string]any
	// ClusterAdmins are the bindings of the role cluster-admin.
	ClusterAdmins []rbacv1.ClusterRoleBinding
	// PKI, Kubeconfigs, Admin, Store and CNI are the files of those.
	PKI, Kubeconfigs, Admin, Store, CNI []File
	// EncryptionProviders are the names of the providers that Secrets are written
	// with, empty without encryption.
	EncryptionProviders []string
	// ProxyMetrics tells that kube-proxy's metrics are served beyond loopback.
	ProxyMetrics bool
}

// Run judges every item, in the order of the benchmark.
func Run(f Facts) []Result {
	var all []Result
	for _, i := range items() {
		r := Result{ID: i.id, Text: i.text}
		r.Status, r.Reason = i.check(f)
		all = append(all, r)
	}
	return all
}

// Failed tells whether an item failed.
func Failed(all []Result) bool {
	for _, r := range all {
		if r.Status == Fail {
			return true
		}
	}
	return false
}

// Print writes the results as table or json.
func Print(w io.Writer, all []Result, format string) error {
	if format == "json" {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		return e.Encode(all)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "ITEM\tSTATUS\tWHAT\tREASON")
	count := map[Status]int{}
	for _, r := range all {
		count[r.Status]++
		reason := r.Reason
		if reason == "" {
			reason = "-"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", r.ID, r.Status, r.Text, reason)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\n%s: %d pass, %d fail, %d with --profile cis, %d depend on workloads, %d not applicable\n",
		Benchmark, count[Pass], count[Fail], count[Profile], count[Workloads], count[None])
	return err
}

type check func(Facts) (Status, string)

type item struct {
	id, text string
	check    check
}

// fixed is an item that nothing is looked at for.
func fixed(s Status, reason string) check {
	return func(Facts) (Status, string) { return s, reason }
}

const (
	apiServer         = "kube-apiserver"
	controllerManager = "kube-controller-manager"
	scheduler         = "kube-scheduler"
)

// flag judges a component's flag.
func flag(component, name string, ok func(string) bool, want string) check {
	return func(f Facts) (Status, string) {
		value := f.Flags[component][name]
		if ok(value) {
			return Pass, ""
		}
		return Fail, fmt.Sprintf("%s of %s is %q; %s", name, component, value, want)
	}
}

// orProfile makes a failure one that --profile cis mends.
func orProfile(c check, why string) check {
	return func(f Facts) (Status, string) {
		s, reason := c(f)
		if s != Fail {
			return s, reason
		}
		return Profile, why
	}
}

func isValue(want string) func(string) bool { return func(v string) bool { return v == want } }
func isSet(v string) bool                   { return v != "" && v != "[]" }
func isUnset(v string) bool                 { return !isSet(v) }

// has tells whether a list, with or without brackets, holds an element.
func has(element string) func(string) bool {
	return func(v string) bool {
		for e := range strings.SplitSeq(strings.Trim(v, "[]"), ",") {
			if strings.TrimSpace(e) == element {
				return true
			}
		}
		return false
	}
}

func lacks(element string) func(string) bool {
	return func(v string) bool { return !has(element)(v) }
}

func atLeast(least int) func(string) bool {
	return func(v string) bool {
		var n int
		_, err := fmt.Sscan(v, &n)
		return err == nil && n >= least
	}
}

// mode judges that no file has permission bits beyond those.
func mode(files func(Facts) []File, most fs.FileMode) check {
	return func(f Facts) (Status, string) {
		for _, one := range files(f) {
			if perm := one.Mode.Perm(); perm&^most != 0 {
				return Fail, fmt.Sprintf("%s has mode %04o; chmod %04o %s", one.Path, perm, perm&most, one.Path)
			}
		}
		return Pass, ""
	}
}

func ownedByRoot(files func(Facts) []File) check {
	return func(f Facts) (Status, string) {
		for _, one := range files(f) {
			if one.UID != 0 || one.GID != 0 {
				return Fail, fmt.Sprintf("%s belongs to %d:%d; chown root:root %s", one.Path, one.UID, one.GID, one.Path)
			}
		}
		return Pass, ""
	}
}

// only leaves out files whose name does not end so.
func only(files func(Facts) []File, suffixes ...string) func(Facts) []File {
	return func(f Facts) []File {
		var kept []File
		for _, one := range files(f) {
			for _, s := range suffixes {
				if strings.HasSuffix(one.Path, s) {
					kept = append(kept, one)
				}
			}
		}
		return kept
	}
}

// kubelet judges a value of the kubelet's configuration; the path's parts are
// divided by dots.
func kubelet(path string, ok func(any) bool, want string) check {
	return func(f Facts) (Status, string) {
		if f.Kubelet == nil {
			return None, "this machine is no node"
		}
		var v any = f.Kubelet
		for part := range strings.SplitSeq(path, ".") {
			m, _ := v.(map[string]any)
			v = m[part]
		}
		if ok(v) {
			return Pass, ""
		}
		return Fail, fmt.Sprintf("the kubelet's %s is %v; %s", path, v, want)
	}
}
