package controlplane

import "testing"

func TestEtcdClientsHaveALoggerToSilence(t *testing.T) {
	if etcd3ClientLogger == nil {
		t.Fatal("upstream's etcd3ClientLogger has moved: find it anew")
	}
}
