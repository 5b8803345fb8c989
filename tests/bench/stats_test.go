package main

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"
)

func TestMedianIsTheMiddleOrTheMeanOfTheTwoMiddleOnes(t *testing.T) {
	for _, c := range []struct {
		samples []float64
		want    float64
	}{
		{nil, 0},
		{[]float64{7}, 7},
		{[]float64{9, 1, 5}, 5},
		{[]float64{4, 1, 100, 2}, 3},
	} {
		if got := median(c.samples); got != c.want {
			t.Errorf("median of %v is %v, want %v", c.samples, got, c.want)
		}
	}
}

func TestPercentileIsASampleThatEnoughOthersDoNotExceed(t *testing.T) {
	var hundred []time.Duration
	for i := 100; i > 0; i-- {
		hundred = append(hundred, time.Duration(i))
	}
	for _, c := range []struct {
		durations []time.Duration
		p         int
		want      time.Duration
	}{
		{nil, 50, 0},
		{[]time.Duration{3}, 99, 3},
		{[]time.Duration{1, 2}, 50, 1},
		{hundred, 50, 50},
		{hundred, 99, 99},
		{hundred[:99], 99, 100},
	} {
		if got := percentile(c.durations, c.p); got != c.want {
			t.Errorf("p%d of %v is %v, want %v", c.p, c.durations, got, c.want)
		}
	}
}

func TestEveryItemOfABurstIsDoneOnceAndTimed(t *testing.T) {
	var mu sync.Mutex
	done := map[int]int{}
	b, err := timeAll(t.Context(), 4, 100, func(_ context.Context, client, i int) error {
		mu.Lock()
		defer mu.Unlock()
		done[i]++
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(done) != 100 || len(b.took) != 100 {
		t.Errorf("did %d items and timed %d, want 100", len(done), len(b.took))
	}
	for i, n := range done {
		if n != 1 {
			t.Errorf("item %d was done %d times", i, n)
		}
	}
}

func TestABurstEndsWithItsFirstError(t *testing.T) {
	broken := errors.New("broken")
	_, err := timeAll(t.Context(), 4, 100, func(_ context.Context, _, i int) error {
		if i == 10 {
			return broken
		}
		return nil
	})
	if !errors.Is(err, broken) {
		t.Errorf("error is %v, want %v", err, broken)
	}
}
