package metrics

import (
	"context"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/metrics/pkg/apis/metrics"
	"sigs.k8s.io/metrics-server/pkg/scraper"
	"sigs.k8s.io/metrics-server/pkg/storage"
)

const (
	// freshFor is how long an answer of the kubelets serves. They take a sample
	// each ten seconds.
	freshFor = 10 * time.Second
	// baseline is how often kubelets are asked when nobody asks us. The first
	// answer after a pause tells the mean since then.
	baseline = time.Minute
	// young is how long a container's use is told as the mean of its life; later
	// there are two samples of it.
	young = baseline + freshFor
	// scrapeTimeout is how long one kubelet may take.
	scrapeTimeout = 10 * time.Second
	// patience is how long who asks us waits for kubelets, one of which may be
	// dead; then the samples before have to do.
	patience = 3 * time.Second
)

// source is metrics-server's storage, filled when it is read.
type source struct {
	storage interface {
		storage.Storage
		NodeReady() bool
	}
	scraper scraper.Scraper
	now     func() time.Time

	mu      sync.Mutex
	scraped time.Time     // when the last scrape began; zero before
	running chan struct{} // closed when the scrape at work has ended; nil if none is
	// answered: a kubelet did, in the last scrape that has ended.
	answered bool
}

func newSource(from scraper.Scraper, now func() time.Time) *source {
	return &source{storage: storage.NewStorage(young), scraper: from, now: now}
}

// GetNodeMetrics implements api.NodeMetricsGetter.
func (s *source) GetNodeMetrics(nodes ...*corev1.Node) ([]metrics.NodeMetrics, error) {
	s.refresh()
	return s.storage.GetNodeMetrics(nodes...)
}

// GetPodMetrics implements api.PodMetricsGetter.
func (s *source) GetPodMetrics(pods ...*metav1.PartialObjectMetadata) ([]metrics.PodMetrics, error) {
	s.refresh()
	return s.storage.GetPodMetrics(pods...)
}

// Store implements storage.Storage.
func (s *source) Store(b *storage.MetricsBatch) { s.storage.Store(b) }

// Ready implements storage.Storage.
func (s *source) Ready() bool { return s.storage.Ready() }

// refresh asks the kubelets if their last answer is old, and waits a little.
func (s *source) refresh() {
	if s.age() < freshFor {
		return
	}
	wait := time.NewTimer(patience)
	defer wait.Stop()
	select {
	case <-s.scrape():
	case <-wait.C:
	}
}

// scrape asks the kubelets, unless that is being done. It returns a channel that
// is closed when they have been asked.
func (s *source) scrape() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running != nil {
		return s.running
	}
	done := make(chan struct{})
	s.running, s.scraped = done, s.now()
	go func() {
		defer close(done)
		ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
		defer cancel()
		batch := s.scraper.Scrape(ctx)
		s.storage.Store(batch)
		s.mu.Lock()
		s.running, s.answered = nil, len(batch.Nodes) > 0
		s.mu.Unlock()
	}()
	return done
}

// age is the time since the last scrape began.
func (s *source) age() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now().Sub(s.scraped)
}

// next is the time until kubelets have to be asked unasked: soon while there is
// but one sample of nodes, which tells no rate.
func (s *source) next() time.Duration {
	s.mu.Lock()
	answered := s.answered
	s.mu.Unlock()
	every := baseline
	if answered && !s.storage.NodeReady() {
		every = freshFor
	}
	return max(every-s.age(), time.Second)
}
