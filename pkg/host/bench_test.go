package host

import "testing"

// What the start of every server waits for: well below 30 ms.
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

// BenchmarkCheck tells what each check costs by itself.
func BenchmarkCheck(b *testing.B) {
	cfg := fitConfig(b)
	for _, c := range checks() {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				new(Machine).survey(cfg).run(c)
			}
		})
	}
}
