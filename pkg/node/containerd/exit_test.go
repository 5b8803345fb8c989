package containerd

import (
	"testing"

	"github.com/containerd/log"
)

func TestServerThatFailsDoesNotEndTheProcess(t *testing.T) {
	failed := make(chan struct{}, 1)
	ctx := withoutExit(t.Context(), failed)
	for range 2 {
		log.G(ctx).WithField("address", "here").Fatal("serve failure")
	}
	select {
	case <-failed:
	default:
		t.Error("nobody was told")
	}
}
