package host

import "testing"

func BenchmarkPreflightAndDetect(b *testing.B) {
	cfg := fitConfig(b)
	for b.Loop() {
		if err := Preflight(cfg).Err(); err != nil {
			b.Skip(err)
		}
		if _, err := Detect(); err != nil {
			b.Fatal(err)
		}
	}
}
