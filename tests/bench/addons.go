package main

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/knarr-dev/knarr/pkg/config"
)

// addonsAt is when the memory of a node is read, after its start: what that needed
// has been given back by then.
const addonsAt = 150 * time.Second

// allAddons stands for a node with every add-on.
const allAddons = "all"

// addonRuns are what is measured: every add-on on, each of them off, all off.
func addonRuns() []string {
	for _, o := range config.Options() {
		if o.Name == "disable" {
			return slices.Concat([]string{allAddons}, o.Choices, []string{strings.Join(o.Choices, ",")})
		}
	}
	return nil
}

// addonKey is that of the samples with an add-on off.
func addonKey(off, figure string) string {
	if strings.Contains(off, ",") {
		off = "none"
	}
	return "addons." + off + "." + figure
}

// addonStart times the start of a node without some of its add-ons.
func (b *bench) addonStart(off string) func(context.Context, *node) error {
	return func(ctx context.Context, n *node) error {
		m, err := n.timeStart(ctx)
		if err != nil {
			return err
		}
		b.results.of(n.subject.name()).add(addonKey(off, "running"), m.running.Seconds())
		b.say("  %s %.3f s", addonKey(off, "running"), m.running.Seconds())
		return nil
	}
}

// addons measures the memory that a node takes without some of its add-ons.
func (b *bench) addons(off string) func(context.Context, *node) error {
	return func(ctx context.Context, n *node) error {
		if _, err := n.timeStart(ctx); err != nil {
			return err
		}
		if err := n.restUntil(ctx, addonsAt); err != nil {
			return err
		}
		mem, err := memory(n.host.CgroupDirs(), n.host.PID())
		if err != nil {
			return err
		}
		b.results.of(n.subject.name()).add(addonKey(off, "pss"), mebibytes(mem.pss))
		b.say("  %s %.1f MiB", addonKey(off, "pss"), mebibytes(mem.pss))
		return nil
	}
}

// without is knarr with add-ons off.
func (k *knarr) without(off string) *knarr {
	other := *k
	if off != allAddons {
		other.args = append(slices.Clone(k.args), "--disable="+off)
	}
	return &other
}

func addonTable() table {
	t := table{title: "Add-ons: first pod Running, and memory two and a half minutes after the start"}
	for _, off := range addonRuns() {
		title := "without " + off
		switch {
		case off == allAddons:
			title = "all on"
		case strings.Contains(off, ","):
			title = "all off"
		}
		t.metrics = append(t.metrics,
			metric{key: addonKey(off, "running"), title: title + ": exec → first pod Running", unit: "s"},
			metric{key: addonKey(off, "pss"), title: title + ": PSS of all processes", unit: "MiB"})
	}
	return t
}
