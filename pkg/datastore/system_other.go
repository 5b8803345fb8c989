//go:build !linux

package datastore

import "os"

// A control plane for tests runs on other systems too. What guards a store for years
// is Linux's.

// watchFile guards nothing here: connections still refuse a file that was replaced.
func (s *Store) watchFile() error { return nil }

// uncache leaves it to the system what it reads.
func uncache(*os.File) error { return nil }

// flushData has what was written to a file on the disk.
func flushData(f *os.File) error { return f.Sync() }
