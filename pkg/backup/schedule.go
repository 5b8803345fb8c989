package backup

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/robfig/cron/v3"

	"github.com/knarr-dev/knarr/pkg/component"
)

const (
	// settleTime is how long a server that has just started is left in peace when a
	// backup is due.
	settleTime = time.Minute
	// retryAfter is the time between a backup that failed and the next attempt, unless
	// the schedule has one sooner.
	retryAfter = 10 * time.Minute
)

// Schedule makes backups at the times that a cron expression names, and prunes
// after each. One that was missed since the latest backup, because the server did
// not run, is made soon after the start.
type Schedule struct {
	// Config is made when the schedule runs, so that a mistake in it is told again
	// with each attempt to start.
	Config func() (Config, error)
	// When is a cron expression in the machine's time, or @every with a duration.
	When string
	// Metrics is where the metrics are registered while Run runs. Default: nowhere.
	Metrics prometheus.Registerer
	Log     *slog.Logger

	// after is time.After, but for tests.
	after func(time.Duration) <-chan time.Time
}

// ParseSchedule reads a cron expression: five fields, or a word such as @daily or
// @every 6h.
func ParseSchedule(text string) (cron.Schedule, error) {
	s, err := cron.ParseStandard(text)
	if err != nil {
		return nil, fmt.Errorf("%w: give five fields as cron has them, or such as \"@every 6h\"", err)
	}
	return s, nil
}

var _ component.Component = (*Schedule)(nil)

// Name implements component.Component.
func (s *Schedule) Name() string { return "backup" }

// Needs implements component.Component.
func (s *Schedule) Needs() []string { return []string{"apiserver"} }

// Run implements component.Component.
func (s *Schedule) Run(ctx context.Context, ready chan<- struct{}) error {
	when, err := ParseSchedule(s.When)
	if err != nil {
		return fmt.Errorf("--backup-schedule: %w", err)
	}
	cfg, err := s.Config()
	if err != nil {
		return err
	}
	if cfg.Keys.Sealed() {
		if _, err := cfg.Keys.recipients(); err != nil {
			return err
		}
	} else {
		s.Log.Warn("scheduled backups are not encrypted: they hold the cluster's keys (--backup-recipients-file, --backup-passphrase-file)", "storage", cfg.Storage.String())
	}
	told := newMetrics()
	defer told.register(s.Metrics)()
	after := s.after
	if after == nil {
		after = time.After
	}
	latest, err := s.latest(ctx, cfg)
	if err != nil && ctx.Err() == nil {
		s.Log.Warn("look for the latest backup", "err", err)
	}
	told.made(latest)
	close(ready)
	next := when.Next(latest)
	if soon := cfg.now().Add(settleTime); next.Before(soon) {
		next = soon
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-after(next.Sub(cfg.now())):
		}
		err := s.backUp(ctx, cfg, told)
		now := cfg.now()
		if next = when.Next(now); err == nil || ctx.Err() != nil {
			continue
		}
		told.failures.Inc()
		if retry := now.Add(retryAfter); retry.Before(next) {
			next = retry
		}
		s.Log.Error("scheduled backup failed", "err", err, "next", next.Format(time.RFC3339))
	}
}

// latest is when the latest backup of this cluster was made; now, if there is
// none: the first comes when the schedule says so.
func (s *Schedule) latest(ctx context.Context, cfg Config) (time.Time, error) {
	cluster, err := clusterOf(cfg.serverDir())
	if err != nil {
		return cfg.now(), err
	}
	all, err := List(ctx, cfg)
	if err != nil {
		return cfg.now(), err
	}
	latest := time.Time{}
	for _, b := range all {
		if b.isOf(cluster) && b.Created.After(latest) {
			latest = b.Created
		}
	}
	if latest.IsZero() || latest.After(cfg.now()) {
		return cfg.now(), nil
	}
	return latest, nil
}

func (s *Schedule) backUp(ctx context.Context, cfg Config, told *metrics) error {
	began := cfg.now()
	m, stored, err := Create(ctx, cfg)
	if err != nil {
		return err
	}
	told.made(m.Created)
	told.size.Set(float64(stored.Size))
	s.Log.Info("backup made", "name", stored.Name, "storage", cfg.Storage.String(), "bytes", stored.Size, "took", cfg.now().Sub(began).Round(time.Millisecond))
	if _, err := Prune(ctx, cfg); err != nil {
		s.Log.Warn("prune backups", "err", err)
	}
	return nil
}

// metrics are what a schedule tells Prometheus.
type metrics struct {
	latest   prometheus.Gauge
	size     prometheus.Gauge
	failures prometheus.Counter
}

func newMetrics() *metrics {
	return &metrics{
		latest: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "knarr_backup_latest_timestamp_seconds",
			Help: "When the latest backup was made; when the server started, if there is none.",
		}),
		size: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "knarr_backup_latest_bytes",
			Help: "Size of the latest backup that this process made.",
		}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "knarr_backup_failures_total",
			Help: "Scheduled backups that failed.",
		}),
	}
}

func (m *metrics) made(at time.Time) { m.latest.Set(float64(at.UnixMilli()) / 1000) }

// register returns what makes the metrics unknown again.
func (m *metrics) register(to prometheus.Registerer) func() {
	all := []prometheus.Collector{m.latest, m.size, m.failures}
	if to == nil {
		return func() {}
	}
	var known []prometheus.Collector
	for _, c := range all {
		// Those of another server in this process stay.
		if err := to.Register(c); err == nil || !errors.As(err, new(prometheus.AlreadyRegisteredError)) {
			known = append(known, c)
		}
	}
	return func() {
		for _, c := range known {
			to.Unregister(c)
		}
	}
}
