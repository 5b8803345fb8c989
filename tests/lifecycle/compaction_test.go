package lifecycle

import (
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	_ "github.com/mattn/go-sqlite3"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/knarr-dev/knarr/tests/harness"
	"github.com/knarr-dev/knarr/tests/harness/kube"
)

// A list in pages is told when the store has forgotten the moment that it is of,
// and how to go on all the same.
func listsInPagesAfterACompaction(t *testing.T, n *harness.Node) {
	maps := n.Client.CoreV1().ConfigMaps("default")
	for i := range 6 {
		c := kube.ConfigMap(fmt.Sprintf("note-%d", i), "text", "old")
		c.Labels = map[string]string{"note": "yes"}
		n.Create(t, "default", c)
	}
	list := func(o metav1.ListOptions) (*corev1.ConfigMapList, error) {
		o.LabelSelector = "note=yes"
		return maps.List(t.Context(), o)
	}
	first, err := list(metav1.ListOptions{Limit: 3})
	if err != nil {
		t.Fatal(err)
	}
	n.Kubectl(t, "patch", "configmap", "note-5", "--patch", `{"data": {"text": "new"}}`)
	n.Kubectl(t, "delete", "configmap", "note-4")

	n.Stop(t)
	compact(t, n.Host.Path("/var/lib/knarr/server/db"))
	n.Resume(t)

	_, err = list(metav1.ListOptions{Limit: 3, Continue: first.Continue})
	var status *apierrors.StatusError
	if !apierrors.IsResourceExpired(err) || !errors.As(err, &status) {
		t.Fatalf("the page after the compaction: %v", err)
	}
	if _, err := list(metav1.ListOptions{ResourceVersion: first.ResourceVersion, ResourceVersionMatch: metav1.ResourceVersionMatchExact}); !apierrors.IsResourceExpired(err) {
		t.Errorf("a list of that moment: %v", err)
	}
	// The rest of the names, as they are now.
	rest, err := list(metav1.ListOptions{Limit: 3, Continue: status.ErrStatus.ListMeta.Continue})
	if err != nil {
		t.Fatal(err)
	}
	var told []string
	for _, c := range rest.Items {
		told = append(told, c.Name+" "+c.Data["text"])
	}
	if got := strings.Join(told, ", "); got != "note-3 old, note-5 new" || rest.Continue != "" {
		t.Errorf("the rest is %s, continued by %q", got, rest.Continue)
	}
}

// compact does to a store that nobody uses what the server does to its own every
// five minutes, except for the last thousand revisions, which that keeps.
func compact(t *testing.T, dir string) {
	t.Helper()
	// SQLite follows links in a path, and so would not stay in the host.
	copied := t.TempDir()
	move := func(name, from, to string) {
		t.Helper()
		if _, err := os.Stat(filepath.Join(from, name)); errors.Is(err, fs.ErrNotExist) {
			return
		}
		harness.CopyFile(t, filepath.Join(from, name), filepath.Join(to, name), 0o600)
		if err := os.Remove(filepath.Join(from, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"state.db", "state.db-wal"} {
		move(name, dir, copied)
	}
	db, err := sql.Open("sqlite3", filepath.Join(copied, "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	// Up to the last revision but one: the last one tells how far the store is.
	const compacted = `id < (SELECT MAX(id) FROM kine) AND name != 'compact_rev_key'`
	for _, statement := range []string{
		`DELETE FROM kine WHERE ` + compacted + ` AND (deleted != 0 OR id IN (SELECT prev_revision FROM kine WHERE ` + compacted + `))`,
		`UPDATE kine SET prev_revision = (SELECT MAX(id) - 1 FROM kine) WHERE name = 'compact_rev_key'`,
	} {
		if _, err := db.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"state.db", "state.db-wal"} {
		move(name, copied, dir)
	}
}
