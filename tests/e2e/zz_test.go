package e2e
import ("testing";"time")
func TestZZ(t *testing.T) {
	s := newSpace(t); began := time.Now()
	t.Log(time.Since(began)); s.apply(web("first"))
	t.Log(time.Since(began)); s.client()
	t.Log(time.Since(began)); s.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
	t.Log(time.Since(began)); want(t, "the answer", s.fromPod("http://web"), "first")

	t.Log(time.Since(began)); s.apply(web("second"))
	t.Log(time.Since(began)); s.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
	t.Log(time.Since(began)); s.pods("app=web", 2)
	t.Log(time.Since(began)); want(t, "the answer after the roll-out", s.fromPod("http://web"), "second")
	history := s.kubectl("rollout", "history", "deployment/web")
	t.Log(time.Since(began)); wantPart(t, "the history", history, "1 ")
	t.Log(time.Since(began)); wantPart(t, "the history", history, "2 ")

	t.Log(time.Since(began)); s.kubectl("rollout", "undo", "deployment/web")
	t.Log(time.Since(began)); s.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
	t.Log(time.Since(began)); s.pods("app=web", 2)
	t.Log(time.Since(began)); want(t, "the answer after the undo", s.fromPod("http://web"), "first")

	t.Log(time.Since(began)); s.kubectl("scale", "deployment/web", "--replicas=4")
	t.Log(time.Since(began)); s.pods("app=web", 4)
	t.Log(time.Since(began)); s.kubectl("scale", "deployment/web", "--replicas=1")
	t.Log(time.Since(began)); s.pods("app=web", 1)
	t.Log(time.Since(began)); want(t, "the answer of the last replica", s.fromPod("http://web"), "first")

	t.Log(time.Since(began)); s.kubectl("rollout", "restart", "deployment/web")
	t.Log(time.Since(began)); s.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
	t.Log(time.Since(began))
}
