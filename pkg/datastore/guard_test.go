package datastore

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// filled is a closed store with entries, a few hundred kilobytes.
func filled(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "db", "state.db")
	s, c := open(t, path)
	for i := range 100 {
		put(t, c, fmt.Sprintf("/a/%d", i), strings.Repeat("x", 4000))
	}
	s.Close()
	return path
}

func put(t *testing.T, c *clientv3.Client, key, value string) {
	t.Helper()
	r, err := c.Txn(t.Context()).If(clientv3.Compare(clientv3.ModRevision(key), "=", 0)).Then(clientv3.OpPut(key, value)).Commit()
	if err != nil || !r.Succeeded {
		t.Fatalf("create %s: %v, %v", key, r, err)
	}
}

func TestDamagedStoreIsToldAndLeftAlone(t *testing.T) {
	eachDriver(t, testDamagedStoreIsToldAndLeftAlone)
}

func testDamagedStoreIsToldAndLeftAlone(t *testing.T) {
	for name, damage := range map[string]func([]byte) []byte{
		"truncated": func(b []byte) []byte { return b[:len(b)/2] },
		"overwritten in the middle": func(b []byte) []byte {
			copy(b[len(b)/2/4096*4096:], bytes.Repeat([]byte{0xa5}, 8192))
			return b
		},
		"a bit flipped in a page's header": func(b []byte) []byte {
			b[4096+3] ^= 0x10
			return b
		},
		"emptied": func([]byte) []byte { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			path := filled(t)
			whole, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			damaged := damage(whole)
			if err := os.WriteFile(path, damaged, 0o600); err != nil {
				t.Fatal(err)
			}
			if len(damaged) > 0 { // the log still has every page
				if err := os.Truncate(path+"-wal", 0); err != nil {
					t.Fatal(err)
				}
			}
			s, err := Open(t.Context(), Config{Driver: driverOf(t), Path: path})
			if err == nil {
				s.Close()
				t.Fatal("it was opened")
			}
			for _, want := range []string{path, "backup", "-wal"} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("no %q in: %v", want, err)
				}
			}
			if left, err := os.ReadFile(path); err != nil || !bytes.Equal(left, damaged) {
				t.Errorf("the damaged file was changed (%v)", err)
			}
		})
	}
}

func TestStoreOfWhichOnlyTheLogIsLeftIsNotBegunAnew(t *testing.T) {
	eachDriver(t, testStoreOfWhichOnlyTheLogIsLeftIsNotBegunAnew)
}

func testStoreOfWhichOnlyTheLogIsLeftIsNotBegunAnew(t *testing.T) {
	path := filled(t)
	log, err := os.ReadFile(path + "-wal")
	if err != nil || len(log) == 0 {
		t.Fatalf("no log is left: %v", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), Config{Driver: driverOf(t), Path: path}); err == nil || !strings.Contains(err.Error(), path+"-wal") {
		t.Errorf("got %v", err)
	}
	if left, err := os.ReadFile(path + "-wal"); err != nil || !bytes.Equal(left, log) {
		t.Errorf("the log was changed (%v)", err)
	}
}

func TestStoreThatIsRemovedWhileInUseIsSaved(t *testing.T) {
	eachDriver(t, testStoreThatIsRemovedWhileInUseIsSaved)
}

func testStoreThatIsRemovedWhileInUseIsSaved(t *testing.T) {
	for name, remove := range map[string]func(path string) error{
		"its file":   os.Remove,
		"its folder": func(path string) error { return os.RemoveAll(filepath.Dir(path)) },
		"moved away": func(path string) error { return os.Rename(path, path+".away") },
		"replaced": func(path string) error {
			if err := os.WriteFile(path+".new", nil, 0o600); err != nil {
				return err
			}
			return os.Rename(path+".new", path)
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := filled(t)
			s, c := open(t, path)
			put(t, c, "/b/1", "last")
			if err := s.Err(); err != nil {
				t.Fatal(err)
			}
			if err := remove(path); err != nil {
				t.Fatal(err)
			}
			<-s.Failed()
			if err := s.Err(); err == nil || !strings.Contains(err.Error(), rescued(path)) {
				t.Errorf("the error does not name what was saved: %v", err)
			}
			if _, err := c.Put(t.Context(), "/b/2", "x"); err == nil {
				t.Error("a write was acknowledged after that")
			}
			s.Close()
			if _, err := Open(t.Context(), Config{Driver: driverOf(t), Path: path}); err == nil || !strings.Contains(err.Error(), rescued(path)) {
				t.Errorf("it was begun anew, or not told how to go on: %v", err)
			}

			// As the error says.
			for _, suffix := range []string{"", "-wal", "-shm"} {
				if err := os.Remove(path + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
					t.Fatal(err)
				}
			}
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.Rename(rescued(path), path)); err != nil {
				t.Fatal(err)
			}
			_, c = open(t, path)
			for prefix, want := range map[string]int64{"/a/": 100, "/b/": 1} {
				r, err := c.Get(t.Context(), prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
				if err != nil || r.Count != want {
					t.Errorf("of %d entries %v were saved (%v)", want, r, err)
				}
			}
		})
	}
}

func TestStoreWhoseDiskFailedIsReadUntilItIsOpenedAnew(t *testing.T) {
	eachDriver(t, testStoreWhoseDiskFailedIsReadUntilItIsOpenedAnew)
}

func testStoreWhoseDiskFailedIsReadUntilItIsOpenedAnew(t *testing.T) {
	path := filled(t)
	if _, err := os.Stat(cleanly(path)); err != nil {
		t.Errorf("it was closed in order, and does not say so: %v", err)
	}
	s, c := open(t, path)
	s.guard.distrust(errors.New("input/output error"))
	create := clientv3.OpTxn([]clientv3.Cmp{clientv3.Compare(clientv3.ModRevision("/b/1"), "=", 0)}, []clientv3.Op{clientv3.OpPut("/b/1", "x")}, nil)
	if _, err := c.Do(t.Context(), create); err == nil || !strings.Contains(err.Error(), "disk failed") {
		t.Errorf("a write was answered with %v", err)
	}
	if r, err := c.Get(t.Context(), "/a/", clientv3.WithPrefix(), clientv3.WithCountOnly()); err != nil || r.Count != 100 {
		t.Errorf("read: %v, %v", r, err)
	}
	<-s.Failed()
	if err := s.Err(); err == nil || !strings.Contains(err.Error(), "input/output error") {
		t.Errorf("the error does not tell why: %v", err)
	}
	s.Close()
	if _, err := os.Stat(cleanly(path)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it says that it was closed in order (%v)", err)
	}
	_, c = open(t, path)
	put(t, c, "/b/1", "x")
}

func TestStoreThatNobodyWroteToSinceItsCloseIsNotLookedThrough(t *testing.T) {
	eachDriver(t, func(t *testing.T) {
		path := filled(t)
		if unchanged, err := reread(path); err != nil || !unchanged {
			t.Errorf("closed in order: unchanged %v, %v", unchanged, err)
		}
		if unchanged, err := reread(path); err != nil || unchanged {
			t.Errorf("the second start after that, as after a crash: unchanged %v, %v", unchanged, err)
		}
		for _, file := range []string{path, path + "-wal"} {
			s, _ := open(t, path)
			s.Close()
			if err := os.Chtimes(file, time.Time{}, time.Now().Add(time.Minute)); err != nil {
				t.Fatal(err)
			}
			if unchanged, err := reread(path); err != nil || unchanged {
				t.Errorf("somebody wrote to %s: unchanged %v, %v", filepath.Base(file), unchanged, err)
			}
		}
	})
}

func TestLogOfAStoreHasRoomFromTheFirstWrite(t *testing.T) {
	eachDriver(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "state.db")
		open(t, path)
		if info, err := os.Stat(path + "-wal"); err != nil || info.Size() < roomAtOnce {
			t.Errorf("the log has %v (%v)", info, err)
		}
	})
}
