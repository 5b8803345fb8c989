package config

import (
	"fmt"
	"strings"
	"testing"
)

func TestLoadBalancerPoolIsReadFromRanges(t *testing.T) {
	for text, want := range map[string]string{
		"192.0.2.10-192.0.2.12":              "[192.0.2.10 192.0.2.11 192.0.2.12]",
		"192.0.2.10":                         "[192.0.2.10]",
		"192.0.2.8/30":                       "[192.0.2.9 192.0.2.10]",
		"192.0.2.8/31":                       "[192.0.2.8 192.0.2.9]",
		"192.0.2.8/32":                       "[192.0.2.8]",
		"192.0.2.11,192.0.2.10 - 192.0.2.11": "[192.0.2.10 192.0.2.11]",
		"2001:db8::1-2001:db8::2":            "[2001:db8::1 2001:db8::2]",
		"255.255.255.254-255.255.255.255":    "[255.255.255.254 255.255.255.255]",
		"":                                   "[]",
		"192.0.2.12-192.0.2.10":              "is not a range",
		"192.0.2.10-2001:db8::1":             "is not a range",
		"192.0.2.10-":                        "is not a range",
		"nonsense":                           "is not a range",
		"10.0.0.0/8":                         "more than",
		"10.0.0.0-10.255.255.255":            "more than",
		"2001:db8::/64":                      "more than",
		"10.0.0.0-10.0.15.0,10.1.0.0-10.1.15.255": "more than",
	} {
		var n Network
		if text != "" {
			n.ServiceLBPool = strings.Split(text, ",")
		}
		got, err := n.LoadBalancerPool()
		if said := fmt.Sprint(got, " ", err); !strings.Contains(said, want) {
			t.Errorf("%s: %s, want %s", text, said, want)
		}
	}
}
