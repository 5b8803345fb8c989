package engine

import (
	"cmp"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/k3s-io/kine/pkg/server"
)

// errGone says that a revision's row is not there any more.
var errGone = errors.New("the revision was compacted")

// past is the end of a range without one: etcd's convention.
const past = "\x00"

// within tells whether a key lies in a range as etcd writes it.
func within(key, from, end string) bool {
	switch end {
	case "":
		return key == from
	case past:
		return key >= from
	}
	return key >= from && key < end
}

// snapshot is which keys of a range there were at a revision.
type snapshot struct {
	rev   int64 // the store's, when it was looked at
	items []item
}

// look finds the keys of a range at a revision, 0 for the present; at most limit
// if that is not 0.
func (e *Engine) look(ctx context.Context, from, end string, limit, revision int64) (snapshot, error) {
	if e.ctx.Err() != nil {
		return snapshot{}, ErrClosed
	}
	e.mu.RLock()
	s, compacted := snapshot{rev: e.rev}, e.compacted
	switch {
	case revision > e.rev:
		e.mu.RUnlock()
		return s, server.ErrFutureRev
	case revision > 0 && revision < compacted:
		e.mu.RUnlock()
		return s, server.ErrCompacted
	}
	if revision == e.rev {
		revision = 0
	}
	if revision > 0 {
		limit = 0 // the past may have others before them
	}
	e.ascend(from, end, func(it item) bool {
		s.items = append(s.items, it)
		return limit == 0 || int64(len(s.items)) < limit
	})
	e.mu.RUnlock()
	if revision == 0 {
		return s, nil
	}
	return s, e.goBack(ctx, &s, from, end, revision)
}

// ascend calls yield for the keys of a range. The caller holds mu.
func (e *Engine) ascend(from, end string, yield func(item) bool) {
	switch end {
	case "":
		if it, ok := e.keys.Get(item{key: from}); ok {
			yield(it)
		}
	case past:
		e.keys.AscendGreaterOrEqual(item{key: from}, yield)
	default:
		e.keys.AscendRange(item{key: from}, item{key: end}, yield)
	}
}

// goBack undoes, in a snapshot of the present, what was done after a revision: the
// first change of a key since then knows the one before.
func (e *Engine) goBack(ctx context.Context, s *snapshot, from, end string, revision int64) error {
	before, err := e.changed(ctx, from, end, revision, s.rev)
	if err != nil {
		return err
	}
	s.items = slices.DeleteFunc(s.items, func(it item) bool {
		_, changed := before[it.key]
		return changed
	})
	for name, prev := range before {
		if prev == 0 {
			continue
		}
		it := item{key: name, rev: prev}
		err := e.db.QueryRowContext(ctx, "SELECT created, version, lease FROM log WHERE rev = ?", prev).Scan(&it.created, &it.version, &it.lease)
		if errors.Is(err, sql.ErrNoRows) {
			return server.ErrCompacted // meanwhile
		}
		if err != nil {
			return fmt.Errorf("read revision %d: %w", prev, err)
		}
		s.items = append(s.items, it)
	}
	slices.SortFunc(s.items, func(a, b item) int { return cmp.Compare(a.key, b.key) })
	return e.still(revision)
}

// changed returns the keys of a range that were changed after a revision and up to
// another, and the revision that each had before.
func (e *Engine) changed(ctx context.Context, from, end string, after, upTo int64) (map[string]int64, error) {
	rows, err := e.db.QueryContext(ctx, "SELECT name, prev FROM log WHERE rev > ? AND rev <= ? ORDER BY rev", after, upTo)
	if err != nil {
		return nil, fmt.Errorf("read the past: %w", err)
	}
	defer rows.Close()
	before := map[string]int64{}
	for rows.Next() {
		var name string
		var prev int64
		if err := rows.Scan(&name, &prev); err != nil {
			return nil, fmt.Errorf("read the past: %w", err)
		}
		if _, known := before[name]; !known && within(name, from, end) {
			before[name] = prev
		}
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read the past: %w", err)
	}
	return before, nil
}

// still fails if a revision was compacted meanwhile.
func (e *Engine) still(revision int64) error {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if revision < e.compacted {
		return server.ErrCompacted
	}
	return nil
}

// Get returns a key at a revision, 0 for the present, or nil.
func (e *Engine) Get(ctx context.Context, key string, revision int64, keysOnly bool) (int64, *server.KeyValue, error) {
	rev, kvs, err := e.List(ctx, key, "", 1, revision, keysOnly)
	if err != nil || len(kvs) == 0 {
		return rev, nil, err
	}
	return rev, kvs[0], nil
}

// Count returns how many keys a range has.
func (e *Engine) Count(ctx context.Context, key, end string, revision int64) (int64, int64, error) {
	if e.ctx.Err() != nil {
		return 0, 0, ErrClosed
	}
	e.mu.RLock()
	if rev := e.rev; revision == 0 || revision == rev {
		defer e.mu.RUnlock()
		var n int64
		e.ascend(key, end, func(item) bool { n++; return true })
		return rev, n, nil
	}
	e.mu.RUnlock()
	s, err := e.look(ctx, key, end, 0, revision)
	return s.rev, int64(len(s.items)), err
}

// List returns the keys of a range in their order.
func (e *Engine) List(ctx context.Context, key, end string, limit, revision int64, keysOnly bool) (int64, []*server.KeyValue, error) {
	for {
		s, err := e.look(ctx, key, end, limit, revision)
		if err != nil {
			return s.rev, nil, err
		}
		if limit > 0 && int64(len(s.items)) > limit {
			s.items = s.items[:limit]
		}
		kvs, err := e.fetch(ctx, s.items, keysOnly)
		if !errors.Is(err, errGone) {
			return s.rev, kvs, err
		}
		if revision != 0 {
			return s.rev, nil, server.ErrCompacted
		}
		// All of them were changed and compacted meanwhile: look again.
	}
}

// dense is how many rows may be passed by for one that is wanted, before each is
// looked up by itself.
const dense = 8

// fetch reads the values of items.
func (e *Engine) fetch(ctx context.Context, items []item, keysOnly bool) ([]*server.KeyValue, error) {
	kvs := make([]*server.KeyValue, len(items))
	var wanted []int
	e.mu.RLock()
	for i, it := range items {
		kvs[i] = it.keyValue()
		if keysOnly {
			continue
		}
		if ev := e.ring.at(it.rev); ev != nil {
			kvs[i].Value = ev.value
		} else {
			wanted = append(wanted, i)
		}
	}
	e.mu.RUnlock()
	if len(wanted) == 0 {
		return kvs, nil
	}
	e.cfg.Metrics.read.Add(float64(len(wanted)))
	slices.SortFunc(wanted, func(a, b int) int { return cmp.Compare(items[a].rev, items[b].rev) })
	first, last := items[wanted[0]].rev, items[wanted[len(wanted)-1]].rev
	var err error
	if len(wanted) > 1 && last-first < dense*int64(len(wanted)) {
		err = e.fetchRange(ctx, items, wanted, kvs)
	} else {
		err = e.fetchEach(ctx, items, wanted, kvs)
	}
	if err != nil {
		return nil, err
	}
	return kvs, nil
}

func (e *Engine) fetchEach(ctx context.Context, items []item, wanted []int, kvs []*server.KeyValue) error {
	return e.prepared(ctx, "SELECT value FROM log WHERE rev = ?", func(s statement) error {
		var row [1]driver.Value
		for _, i := range wanted {
			n, err := s.each(ctx, row[:], func() (more bool, err error) {
				kvs[i].Value, err = blob(row[0])
				return false, err
			}, items[i].rev)
			if err != nil {
				return fmt.Errorf("read revision %d: %w", items[i].rev, err)
			}
			if n == 0 {
				return errGone
			}
		}
		return nil
	})
}

func (e *Engine) fetchRange(ctx context.Context, items []item, wanted []int, kvs []*server.KeyValue) error {
	return e.prepared(ctx, "SELECT rev, value FROM log WHERE rev >= ? AND rev <= ? ORDER BY rev", func(s statement) error {
		var row [2]driver.Value
		n, first, last := 0, items[wanted[0]].rev, items[wanted[len(wanted)-1]].rev
		_, err := s.each(ctx, row[:], func() (more bool, err error) {
			i, rev := wanted[n], row[0].(int64)
			if items[i].rev == rev {
				kvs[i].Value, err = blob(row[1])
				n++
			}
			return n < len(wanted) && items[wanted[n]].rev > rev, err
		}, first, last)
		if err != nil {
			return fmt.Errorf("read revisions %d to %d: %w", first, last, err)
		}
		if n < len(wanted) {
			return errGone
		}
		return nil
	})
}

// blob is a column's value; NULL is nil.
func blob(v driver.Value) ([]byte, error) {
	switch v := v.(type) {
	case nil:
		return nil, nil
	case []byte:
		return v, nil
	case string:
		return []byte(v), nil
	}
	return nil, fmt.Errorf("the value is of type %T", v)
}

// statement is a prepared one that reads.
type statement struct{ driver.StmtQueryContext }

// prepared hands a statement to use. It goes past database/sql, which takes longer
// for a row than SQLite does; what a row has in it is not copied again, and is the
// caller's.
func (e *Engine) prepared(ctx context.Context, query string, use func(statement) error) error {
	conn, err := e.db.Conn(ctx)
	if err != nil {
		return fmt.Errorf("read: %w", err)
	}
	defer conn.Close()
	return conn.Raw(func(c any) error {
		s, err := c.(driver.ConnPrepareContext).PrepareContext(ctx, query)
		if err != nil {
			return fmt.Errorf("read: %w", err)
		}
		defer s.Close()
		return use(statement{s.(driver.StmtQueryContext)})
	})
}

// each fills row with one row's columns after the other and calls next, which tells
// whether to go on. It returns how many rows it has read.
func (s statement) each(ctx context.Context, row []driver.Value, next func() (bool, error), args ...int64) (n int, err error) {
	// SQLite's driver would watch one that may end, anew for each query.
	rows, err := s.QueryContext(context.WithoutCancel(ctx), named(args...))
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for ctx.Err() == nil {
		err := rows.Next(row)
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return n, err
		}
		n++
		if more, err := next(); !more || err != nil {
			return n, err
		}
	}
	return n, ctx.Err()
}

func named(args ...int64) []driver.NamedValue {
	values := make([]driver.NamedValue, len(args))
	for i, a := range args {
		values[i] = driver.NamedValue{Ordinal: i + 1, Value: a}
	}
	return values
}

// read returns one item with its value.
func (e *Engine) read(ctx context.Context, it item) (*server.KeyValue, error) {
	kvs, err := e.fetch(ctx, []item{it}, false)
	if err != nil {
		return nil, err
	}
	return kvs[0], nil
}

func (it item) keyValue() *server.KeyValue {
	return &server.KeyValue{Key: it.key, Version: it.version, CreateRevision: it.created, ModRevision: it.rev, Lease: it.lease}
}
