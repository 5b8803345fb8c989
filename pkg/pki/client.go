package pki

// Client names one of the client certificates that are used in this process.
type Client int

// The clients.
const (
	Knarr Client = iota
	ControllerManager
	Scheduler
	KubeProxy
	Kubelet
	DNS
)

// Clients maps each to its present certificate.
func (p *PKI) Clients() map[Client]*Leaf {
	return map[Client]*Leaf{
		Knarr: p.Knarr, ControllerManager: p.ControllerManager, Scheduler: p.Scheduler,
		KubeProxy: p.KubeProxy, Kubelet: p.Kubelet, DNS: p.DNS,
	}
}
