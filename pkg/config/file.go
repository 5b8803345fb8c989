package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// fileReader reads configuration files.
type fileReader struct {
	options []Option
	// ignored are options of other machines, which may share the files: what is
	// set of them is only warned of.
	ignored []Option

	problems []error
	warnings []string
}

// read reads the configuration file and then its drop-ins in the order of their
// names. The file may be missing unless the user named it.
func (r *fileReader) read(path string, explicit bool) settings {
	set := settings{}
	dropIns, err := dropIns(path + ".d")
	if err != nil {
		r.problems = append(r.problems, err)
	}
	for _, p := range append([]string{path}, dropIns...) {
		text, err := os.ReadFile(p)
		if errors.Is(err, fs.ErrNotExist) && p == path && !explicit {
			continue
		}
		if err != nil {
			r.problems = append(r.problems, fmt.Errorf("read configuration: %w", err))
			continue
		}
		r.problems = append(r.problems, r.readFile(p, text, set)...)
	}
	return set
}

// dropIns lists the YAML files of a folder by name, leaving out hidden ones
// (which editors make). A missing folder is an empty one.
func dropIns(folder string) ([]string, error) {
	entries, err := os.ReadDir(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	var paths []string
	for _, e := range entries {
		ext := filepath.Ext(e.Name())
		if !e.IsDir() && !strings.HasPrefix(e.Name(), ".") && (ext == ".yaml" || ext == ".yml") {
			paths = append(paths, filepath.Join(folder, e.Name()))
		}
	}
	return paths, nil
}

// readFile adds what one file says to set, and returns all that is wrong with it.
func (r *fileReader) readFile(path string, text []byte, set settings) []error {
	var doc, more yaml.Node
	decoder := yaml.NewDecoder(strings.NewReader(string(text)))
	if err := decoder.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			return nil
		}
		return []error{notYAML(path, err)}
	}
	if err := decoder.Decode(&more); err == nil {
		return []error{&Problem{Where: place(path, more.Line), Why: "a second document begins here",
			Fix: "put it into " + path + ".d as a file of its own"}}
	}
	root := deref(doc.Content[0])
	if root.Kind == yaml.ScalarNode && root.Tag == "!!null" {
		return nil
	}
	if root.Kind != yaml.MappingNode {
		return []error{&Problem{Where: place(path, root.Line), What: kindOf(root),
			Why: "stands where lines of the form \"key: value\" belong"}}
	}
	var problems []error
	first := map[string]int{}
	for i := 0; i+1 < len(root.Content); i += 2 {
		key := deref(root.Content[i])
		if line, twice := first[key.Value]; twice {
			problems = append(problems, &Problem{Where: place(path, key.Line), What: key.Value,
				Why: fmt.Sprintf("was already set in line %d", line), Fix: "keep one of them"})
			continue
		}
		first[key.Value] = key.Line
		if err := r.readKey(path, key, deref(root.Content[i+1]), set); err != nil {
			problems = append(problems, err)
		}
	}
	return problems
}

// readKey adds one line "key: value" or "key+: value" to set.
func (r *fileReader) readKey(path string, key, val *yaml.Node, set settings) error {
	where := place(path, key.Line)
	name, appends := strings.CutSuffix(key.Value, "+")
	o, ok := find(r.options, name)
	if !ok {
		if _, known := find(r.ignored, name); known {
			r.warnings = append(r.warnings, fmt.Sprintf("%s: %s: concerns servers, which tell their agents; it is not read here", where, name))
			return nil
		}
		return &Problem{Where: where, What: name, Why: "is not a key", Fix: nearestKey(r.options, name)}
	}
	if o.notInFile {
		return &Problem{Where: where, What: name, Why: "can't be set in a file", Fix: "use --" + name + " or " + o.Env()}
	}
	if appends && !o.IsList() {
		return &Problem{Where: where, What: key.Value, Why: "appends, but " + name + " takes one value", Fix: "write " + name}
	}
	if !appends {
		delete(set, name)
	}
	origin := fmt.Sprintf("%s: %s", where, name)
	if val.Kind == yaml.ScalarNode {
		if val.Tag != "!!null" {
			set.add(o, o.texts(val.Value), origin)
		}
		return nil
	}
	if val.Kind != yaml.SequenceNode || !o.IsList() {
		return &Problem{Where: origin, What: kindOf(val), Why: "is not allowed here", Fix: o.wanted()}
	}
	for _, item := range val.Content {
		item = deref(item)
		origin := fmt.Sprintf("%s: %s", place(path, item.Line), name)
		if item.Kind != yaml.ScalarNode || item.Tag == "!!null" {
			return &Problem{Where: origin, What: kindOf(item), Why: "is not allowed in the list",
				Fix: "write each item as one text, in quotes if it holds \": \""}
		}
		set.add(o, o.texts(item.Value), origin)
	}
	return nil
}

// wanted says what a file should hold for the option.
func (o Option) wanted() string {
	switch {
	case o.IsSwitch():
		return "give true or false"
	case o.IsList():
		return "give a list, or one text"
	case len(o.Choices) > 0:
		return "give " + alternatives(o.Choices)
	}
	return "give one " + o.Arg
}

func nearestKey(options []Option, name string) string {
	var names []string
	for _, o := range options {
		if !o.notInFile && !o.Hidden {
			names = append(names, o.Name)
		}
	}
	return didYouMean(strings.TrimPrefix(name, "--"), names, "\"knarr server --help\" lists all")
}

// deref follows YAML aliases to what they stand for.
func deref(n *yaml.Node) *yaml.Node {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n
}

func kindOf(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "a mapping"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case n.Tag == "!!null":
		return "nothing"
	}
	return strconv.Quote(n.Value)
}

func place(path string, line int) string { return fmt.Sprintf("%s:%d", path, line) }

// notYAML gives a parser's complaint the form of every other one, file and
// line first.
func notYAML(path string, err error) error {
	m := regexp.MustCompile(`^yaml: line (\d+): (.*)$`).FindStringSubmatch(err.Error())
	if m == nil {
		return &Problem{Where: path, Why: "not YAML: " + strings.TrimPrefix(err.Error(), "yaml: ")}
	}
	return &Problem{Where: path + ":" + m[1], Why: "not YAML: " + m[2]}
}
