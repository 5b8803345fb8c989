package network

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
)

func table(t *testing.T) string { t.Helper(); return run(t, "nft", "list", "table", "inet", "knarr") }

func TestX(t *testing.T) {
	inNetns(t)
	r := NewRules(RulesConfig{ClusterCIDR: netip.MustParsePrefix("10.42.0.0/16"), CacheDir: t.TempDir(), Log: testLog(t)})
	os.MkdirAll(r.resultsDir(), 0o700)
	b, _ := json.Marshal(map[string]any{"netns": "/proc/self/ns/net", "capabilityArgs": map[string]any{"portMappings": []any{map[string]any{"hostPort": 80, "containerPort": 8080, "protocol": "tcp"},
		map[string]any{"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": "10.0.0.1"}}}, "result": map[string]any{"ips": []any{map[string]any{"address": "10.42.0.5/24"}}}})
	os.WriteFile(filepath.Join(r.resultsDir(), "x"), b, 0o600)
	if err := r.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Log(table(t))
	r6 := NewRules(RulesConfig{ClusterCIDR: netip.MustParsePrefix("fd42::/56"), CacheDir: t.TempDir(), Log: testLog(t)})
	if err := r6.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Log(table(t))
}
