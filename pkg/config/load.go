package config

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Given is a flag as it was typed.
type Given struct {
	Name, Value string
}

// Sources is what Load reads a configuration from, besides files.
type Sources struct {
	// Flags are those given, in the order they were typed.
	Flags []Given
	// Environ is the environment, as os.Environ returns it.
	Environ []string
	// Agent reads the options of an agent.
	Agent bool
}

// settings are the values of each option, by name.
type settings map[string][]value

// Load reads files, environment and flags; flags beat environment, which beats
// files, and whoever sets a list sets all of it. What nobody set has its
// default where that doesn't depend on the machine (see Complete).
//
// The error joins every Problem found. The Config is usable even then: what
// could not be read has its default, so that a caller who needs only one
// setting can go on. Warnings are things that look like mistakes but harm
// nothing.
func Load(src Sources) (c *Config, warnings []string, err error) {
	c = &Config{Agent: src.Agent, origins: map[string][]string{}, broken: map[string]bool{}}
	options := c.options()
	env, warnings, problems := fromEnvironment(options, src.Environ)
	flags, flagProblems := fromFlags(options, src.Flags)
	problems = append(problems, flagProblems...)

	file, explicit := DefaultFile, false
	for _, s := range []settings{env, flags} {
		if v := s["config"]; len(v) > 0 {
			file, explicit = v[len(v)-1].text, true
		}
	}
	files := fileReader{options: options}
	if src.Agent {
		files.ignored = Options()
	}
	all := settings{}
	if explicit || !standsApart(env, flags) {
		all = files.read(file, explicit)
	}
	problems, warnings = append(problems, files.problems...), append(warnings, files.warnings...)
	maps.Copy(all, env)
	maps.Copy(all, flags)

	for _, o := range options {
		values := all[o.Name]
		if len(values) == 0 {
			continue
		}
		if err := o.set(c, values); err != nil {
			problems = append(problems, err)
			c.broken[o.Name] = true
			continue
		}
		if !o.IsList() {
			values = values[len(values)-1:]
		}
		for _, v := range values {
			c.origins[o.Name] = append(c.origins[o.Name], v.origin)
		}
	}
	c.setDefaults()
	return c, warnings, errors.Join(problems...)
}

// standsApart tells whether a control plane is to be apart from the machine, whose
// configuration is then not its own.
func standsApart(from ...settings) bool {
	apart := false
	for _, s := range from {
		if v := s["control-plane-only"]; len(v) > 0 {
			// What is no such word is told when it is read.
			apart, _ = strconv.ParseBool(v[len(v)-1].text)
		}
	}
	return apart
}

func fromFlags(options []Option, given []Given) (settings, []error) {
	set := settings{}
	var problems []error
	for _, g := range given {
		origin := "--" + g.Name
		o, ok := find(options, g.Name)
		if !ok {
			problems = append(problems, &Problem{Where: origin, Why: "is not an option"})
			continue
		}
		set.add(o, o.texts(g.Value), origin)
	}
	return set, problems
}

// add appends texts to what the option already has. With no text the option
// becomes known as set to nothing, which hides what weaker sources say.
func (s settings) add(o Option, texts []string, origin string) {
	if _, ok := s[o.Name]; !ok {
		s[o.Name] = nil
	}
	for _, text := range texts {
		s[o.Name] = append(s[o.Name], value{text: text, origin: origin})
	}
}

// texts takes apart what was written for an option. Nothing written means the
// default of a single value, and an empty list.
func (o Option) texts(text string) []string {
	if o.IsList() {
		return o.split(text)
	}
	if text == "" {
		return nil
	}
	return []string{text}
}

// isOtherVariable tells of a KNARR_* variable that is no option, but has a
// reader elsewhere: agents, the installer, lab hosts, throwaway clusters and tests.
func isOtherVariable(name string) bool {
	return slices.Contains([]string{"KNARR_URL", "KNARR_LAB"}, name) ||
		strings.HasPrefix(name, "KNARR_LAB_") || strings.HasPrefix(name, "KNARR_THROWAWAY") || strings.HasPrefix(name, "KNARR_TEST_")
}

// isVariableOfAnother tells of a variable that a server or an agent knows.
func isVariableOfAnother(name string) bool {
	return slices.ContainsFunc(slices.Concat(Options(), AgentOptions()), func(o Option) bool { return o.Env() == name })
}

func fromEnvironment(options []Option, environ []string) (set settings, warnings []string, problems []error) {
	set = settings{}
	var known []string
	for _, o := range options {
		known = append(known, o.Env())
	}
	for _, entry := range environ {
		name, text, _ := strings.Cut(entry, "=")
		if !strings.HasPrefix(name, "KNARR_") {
			continue
		}
		i := slices.IndexFunc(options, func(o Option) bool { return o.Env() == name || o.alias == name })
		// An image's environment is that of servers and of agents.
		if i < 0 && (isOtherVariable(name) || isVariableOfAnother(name)) {
			continue
		}
		if i < 0 {
			warnings = append(warnings, fmt.Sprintf("%s: no such variable; %s", name,
				didYouMean(name, known, "unset it")))
			continue
		}
		// A variable set to nothing is how service files leave one out.
		if text == "" {
			continue
		}
		o := options[i]
		texts := o.texts(text)
		if o.whole {
			// These values may hold commas, and never hold spaces.
			texts = strings.Fields(text)
		}
		set.add(o, texts, name)
	}
	return set, warnings, problems
}

// origin tells where the value of an option was set, or the option's name if
// it wasn't: then a default or a caller's own code set it. For an element of a
// list, i is its index.
func (c *Config) origin(name string, i int) string {
	from := c.origins[name]
	if len(from) == 0 {
		return name
	}
	return from[min(i, len(from)-1)]
}

// IsSet tells whether flag, environment or file set the option of this name.
func (c *Config) IsSet(name string) bool { return len(c.origins[name]) > 0 }
