package datastore

import (
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
)

func TestStoreIsInspectedWhileItIsInUseAndCompactedAfterwards(t *testing.T) {
	eachDriver(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "state.db")
		s, c := open(t, path)
		value := strings.Repeat("x", 1000)
		for n := range 2000 {
			if _, err := c.Put(t.Context(), fmt.Sprint("/registry/pods/default/", n%20), value); err != nil {
				t.Fatal(err)
			}
		}
		put(t, c, "/registry/example.org/widgets/a", value)
		r, err := c.Txn(t.Context()).Then(clientv3.OpGet("/registry/pods/default/7"), clientv3.OpDelete("/registry/pods/default/7")).Commit()
		if err != nil {
			t.Fatal(err)
		}

		i, err := Inspect(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		stats, err := i.Stats(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		pods, widgets := stats.Resources["pods"], stats.Resources["widgets.example.org"]
		if stats.Driver != driverOf(t) || stats.Revision != r.Header.Revision || pods != (ResourceStats{19, 19000, 2001}) || widgets != (ResourceStats{1, 1000, 1}) {
			t.Errorf("got %+v, wanted revision %d", stats, r.Header.Revision)
		}
		if faults, err := i.Check(t.Context()); err != nil || len(faults) > 0 {
			t.Errorf("faults %v, %v", faults, err)
		}
		living, err := i.Living(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if v, err := i.Value(t.Context(), living["/registry/pods/default/6"].Revision); err != nil || string(v) != value {
			t.Errorf("value %s, %v", v, err)
		}
		i.Close()
		s.Close()

		before, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // the second time there is nothing to do
			if err := Compact(t.Context(), path); err != nil {
				t.Fatal(err)
			}
		}
		after, err := os.Stat(path)
		left := before.Size() / 10
		if driverOf(t) == "kine-sqlite" {
			left = before.Size() * 2 / 3 // it always keeps a thousand revisions
		}
		if err != nil || after.Size() > left {
			t.Errorf("of %d bytes %d were left (%v)", before.Size(), after.Size(), err)
		}
		_, c = open(t, path)
		all, err := c.Get(t.Context(), "/registry/", clientv3.WithPrefix())
		if err != nil || all.Count != 21 || all.Header.Revision != r.Header.Revision {
			t.Errorf("%d keys at %d are left (%v)", all.Count, all.Header.Revision, err)
		}
		put(t, c, "/registry/pods/default/7", value)
	})
}

func TestCheckFindsAnIndexThatIsWrongAndRevisionsThatAreMissing(t *testing.T) {
	for name, c := range map[string]struct{ damage, found string }{
		"entry":    {"UPDATE cur SET rev = rev - 1 WHERE name = '/a/40'", "the index has /a/40 at revision"},
		"no entry": {"DELETE FROM cur WHERE name = '/a/40'", "the index lacks /a/40"},
		"row":      {"DELETE FROM log WHERE name = '/a/90'", "are missing"},
		"order":    {"UPDATE log SET prev = 3 WHERE name = '/a/90'", "/a/90 follows 0, and says it follows 3"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state.db")
			s, err := Open(t.Context(), Config{Driver: "sqlite", Path: path})
			if err != nil {
				t.Fatal(err)
			}
			client := s.Client().Client
			for i := range 100 {
				put(t, client, fmt.Sprint("/a/", i), "x")
			}
			if _, err := client.Compact(t.Context(), 60); err != nil {
				t.Fatal(err)
			}
			client.Close()
			s.Close()
			db, err := sql.Open("sqlite3", path)
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			check := func() []string {
				i, err := Inspect(t.Context(), path)
				if err != nil {
					t.Fatal(err)
				}
				defer i.Close()
				faults, err := i.Check(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				return faults
			}
			if faults := check(); len(faults) > 0 {
				t.Fatalf("before any damage: %v", faults)
			}
			if _, err := db.ExecContext(t.Context(), c.damage); err != nil {
				t.Fatal(err)
			}
			if faults := strings.Join(check(), "\n"); !strings.Contains(faults, c.found) {
				t.Errorf("found %q, wanted %q", faults, c.found)
			}
		})
	}
}
