package lifecycle

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/knarr-dev/knarr/tests/harness"
)

// Each mistake is told in a line that names what is wrong, before anything is
// changed.
func TestMistakesAreToldBeforeTheStart(t *testing.T) {
	n := harness.Prepare(t, harness.Options{
		Files: map[string]string{
			"/opt/newer/server/version": "v1.99.0+knarr1\n",
			"/opt/config.yaml":          "node-name: node\nnode-labels: [a=b]\n",
		},
	})
	asNobody := []string{"setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"}
	for name, c := range map[string]struct {
		before, args []string
		code         int
		want         []string
	}{
		"not root":            {before: asNobody, code: 1, want: []string{"root", "sudo"}},
		"overlapping CIDRs":   {args: []string{"--cluster-cidr=10.42.0.0/16", "--service-cidr=10.42.128.0/20"}, code: 2, want: []string{"10.42.128.0/20", "10.42.0.0/16", "overlap", "--service-cidr"}},
		"malformed CIDR":      {args: []string{"--cluster-cidr=10.42.0.0/40"}, code: 2, want: []string{"10.42.0.0/40", "--cluster-cidr"}},
		"unknown flag":        {args: []string{"--cluster-cdir=10.42.0.0/16"}, code: 2, want: []string{"--cluster-cdir"}},
		"unknown key":         {args: []string{"--config=/opt/config.yaml"}, code: 2, want: []string{"/opt/config.yaml", "2", "node-labels", "node-label"}},
		"store of a newer":    {args: []string{"--data-dir=/opt/newer"}, code: 1, want: []string{"/opt/newer", "v1.99.0", "v1.36.4"}},
		"address of no link":  {args: []string{"--node-ip=192.0.2.1"}, code: 1, want: []string{"192.0.2.1", "--node-ip"}},
		"unknown snapshotter": {args: []string{"--snapshotter=zfs"}, code: 2, want: []string{"zfs", "--snapshotter", "overlayfs"}},
	} {
		t.Run(name, func(t *testing.T) {
			command := append(append(c.before, n.Exe, "server"), c.args...)
			said := refused(t, n, c.code, command...)
			for _, w := range c.want {
				if !strings.Contains(said, w) {
					t.Errorf("no %q in:\n%s", w, said)
				}
			}
			if strings.Count(said, "\n") > 2 {
				t.Errorf("more than a line or two:\n%s", said)
			}
		})
	}
	for _, path := range []string{"/var/lib/knarr/server", "/opt/newer/agent", "/run/knarr", "/etc/knarr/kubeconfig.yaml"} {
		if _, err := os.Stat(n.Host.Path(path)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s was made: %v", path, err)
		}
	}
}

// refused runs a server that must end by itself, and returns what it wrote to
// stderr.
func refused(t *testing.T, n *harness.Node, code int, command ...string) string {
	t.Helper()
	_, err := n.Host.Command(t.Context(), command[0], command[1:]...).Output()
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		t.Fatalf("%s: %v", strings.Join(command, " "), err)
	}
	if exit.ExitCode() != code {
		t.Errorf("exit code %d, want %d", exit.ExitCode(), code)
	}
	return string(exit.Stderr)
}
