package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// value is one text given for an option, and where.
type value struct {
	text   string
	origin string
}

// isList tells whether a field takes several values.
func isList(field any) bool {
	switch field.(type) {
	case *[]string, *[]netip.Addr:
		return true
	}
	return false
}

// split takes one text apart into the values of a list. An empty text is an
// empty list.
func (o Option) split(text string) []string {
	if o.whole {
		if text == "" {
			return nil
		}
		return []string{text}
	}
	var parts []string
	for part := range strings.SplitSeq(text, ",") {
		if part = strings.TrimSpace(part); part != "" {
			parts = append(parts, part)
		}
	}
	return parts
}

// set reads values into the option's field. Of several values for a single
// field the last one counts.
func (o Option) set(c *Config, values []value) error {
	if list, ok := o.field(c).(*[]netip.Addr); ok {
		*list = nil
		for _, v := range values {
			addr, err := parseAddr(v.text)
			if err != nil {
				return o.unreadable(v, err)
			}
			*list = append(*list, addr)
		}
		return nil
	}
	if list, ok := o.field(c).(*[]string); ok {
		*list = nil
		for _, v := range values {
			*list = append(*list, v.text)
		}
		return nil
	}
	last := values[len(values)-1]
	if err := parse(o.field(c), last.text); err != nil {
		return o.unreadable(last, err)
	}
	return nil
}

func (o Option) unreadable(v value, why error) error {
	return &Problem{Where: v.origin, What: strconv.Quote(v.text), Why: why.Error()}
}

// parse reads text into a field that holds one value.
func parse(field any, text string) (err error) {
	switch p := field.(type) {
	case *string:
		*p = text
	case *bool:
		if *p, err = strconv.ParseBool(text); err != nil {
			return fmt.Errorf("must be true or false")
		}
	case *On:
		on, err := strconv.ParseBool(text)
		if err != nil {
			return fmt.Errorf("must be true or false")
		}
		p.off = !on
	case *int:
		if *p, err = strconv.Atoi(text); err != nil {
			return fmt.Errorf("must be a whole number")
		}
	case *uint32:
		bits, err := strconv.ParseUint(strings.TrimPrefix(text, "0o"), 8, 32)
		if err != nil {
			return fmt.Errorf("must be permission bits in octal, such as 0600 or 640")
		}
		*p = uint32(bits)
	case *time.Duration:
		if *p, err = time.ParseDuration(text); err != nil {
			return fmt.Errorf("must be a duration, such as 90m or 720h")
		}
	case *netip.Addr:
		*p, err = parseAddr(text)
	case *netip.Prefix:
		*p, err = parsePrefix(text)
	default:
		err = fmt.Errorf("fields of type %T can't be set from text", field)
	}
	return err
}

func parseAddr(text string) (netip.Addr, error) {
	addr, err := netip.ParseAddr(text)
	if err != nil || addr.Zone() != "" {
		return netip.Addr{}, fmt.Errorf("must be an IP address, such as 192.168.1.10")
	}
	return addr.Unmap(), nil
}

func parsePrefix(text string) (netip.Prefix, error) {
	if strings.Contains(text, ",") {
		return netip.Prefix{}, fmt.Errorf("must be one range; two address families at once are not supported")
	}
	prefix, err := netip.ParsePrefix(text)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("must be a range of addresses, such as 10.42.0.0/16")
	}
	if masked := prefix.Masked(); masked != prefix {
		return netip.Prefix{}, fmt.Errorf("has bits set behind the first %d; write %s", prefix.Bits(), masked)
	}
	return prefix, nil
}

// Values returns what c holds for the option, as a user would write it. It is
// empty where nothing is set.
func (o Option) Values(c *Config) []string {
	switch p := o.field(c).(type) {
	case *[]string:
		return slices.Clone(*p)
	case *[]netip.Addr:
		var texts []string
		for _, addr := range *p {
			texts = append(texts, addr.String())
		}
		return texts
	case *string:
		if *p != "" {
			return []string{*p}
		}
	case *bool:
		return []string{strconv.FormatBool(*p)}
	case *On:
		return []string{strconv.FormatBool(p.Enabled())}
	case *int:
		if *p != 0 {
			return []string{strconv.Itoa(*p)}
		}
	case *uint32:
		if *p != 0 {
			return []string{fmt.Sprintf("%04o", *p)}
		}
	case *time.Duration:
		if *p != 0 {
			return []string{p.String()}
		}
	case *netip.Addr:
		if p.IsValid() {
			return []string{p.String()}
		}
	case *netip.Prefix:
		if p.IsValid() {
			return []string{p.String()}
		}
	}
	return nil
}

// setDefaults fills what is still empty from the table of options.
func (c *Config) setDefaults() {
	for _, o := range c.options() {
		if o.Default == "" || len(o.Values(c)) > 0 {
			continue
		}
		// The table is ours, and a test reads every default in it.
		_ = o.set(c, []value{{text: o.Default}})
	}
}

// Default returns a Config with every default that does not depend on the
// machine; Complete adds those that do.
func Default() *Config {
	c := new(Config)
	c.setDefaults()
	return c
}
