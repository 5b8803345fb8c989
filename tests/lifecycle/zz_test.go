package lifecycle
import ("testing";"github.com/knarr-dev/knarr/tests/harness";"fmt")
func show(t *testing.T, n *harness.Node) {
	s := ""
	for _, c := range n.Status(t).Components { s += fmt.Sprintf("%s %.2f | ", c.Name, c.ReadyAfter.Seconds()) }
	t.Log(s)
}
func TestZZ(t *testing.T) {
	for range 2 {
	n := harness.Start(t, harness.Options{})
	show(t, n)
	n.Restart(t)
	show(t, n)
	n.Reload(t)
	show(t, n)
	t.Log(n.Log(t))
	n.Stop(t)
	}
}
