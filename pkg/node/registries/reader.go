package registries

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/knarr-dev/knarr/pkg/config"
)

// reader walks a YAML document and collects what is wrong with it.
type reader struct {
	path     string
	problems []error
}

// add notes a mistake at a line, in the value of a key written with dots.
func (r *reader) add(line int, key, what, why, fix string) {
	where := fmt.Sprintf("%s:%d", r.path, line)
	if key != "" {
		where += ": " + key
	}
	r.problems = append(r.problems, &config.Problem{Where: where, What: what, Why: why, Fix: fix})
}

// mapping hands on each key with its value, in the order of the text. An empty
// list of known keys allows any.
func (r *reader) mapping(where string, n *yaml.Node, known []string, each func(key string, val *yaml.Node)) {
	n = deref(n)
	if n.Tag == "!!null" {
		return
	}
	if n.Kind != yaml.MappingNode {
		r.add(n.Line, where, kindOf(n), "stands where lines of the form \"key: value\" belong", "")
		return
	}
	first := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, val := deref(n.Content[i]), deref(n.Content[i+1])
		if line, twice := first[key.Value]; twice {
			r.add(key.Line, where, key.Value, fmt.Sprintf("was already set in line %d", line), "keep one of them")
			continue
		}
		first[key.Value] = key.Line
		if len(known) > 0 && !slices.Contains(known, key.Value) {
			fix := "there are " + strings.Join(known, ", ")
			if near := config.Nearest(key.Value, known); near != "" {
				fix = "did you mean " + near + "?"
			}
			r.add(key.Line, where, key.Value, "is not a key", fix)
			continue
		}
		each(key.Value, val)
	}
}

func (r *reader) list(where string, n *yaml.Node) []*yaml.Node {
	n = deref(n)
	if n.Tag == "!!null" {
		return nil
	}
	if n.Kind != yaml.SequenceNode {
		r.add(n.Line, where, kindOf(n), "stands where a list belongs", "begin each item with \"- \" on a line of its own")
		return nil
	}
	return n.Content
}

// text is a single value. Nothing is an empty text.
func (r *reader) text(where string, n *yaml.Node) string {
	n = deref(n)
	if n.Kind != yaml.ScalarNode {
		r.add(n.Line, where, kindOf(n), "is not allowed here", "give one text")
		return ""
	}
	if n.Tag == "!!null" {
		return ""
	}
	return n.Value
}

func (r *reader) boolean(where string, n *yaml.Node) bool {
	text := r.text(where, n)
	if text == "" {
		return false
	}
	on, err := strconv.ParseBool(text)
	if err != nil {
		r.add(n.Line, where, strconv.Quote(text), "must be true or false", "")
	}
	return on
}

// deref follows YAML aliases to what they stand for.
func deref(n *yaml.Node) *yaml.Node {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n
}

func kindOf(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	return strconv.Quote(n.Value)
}

// notYAML gives a parser's complaint the form of every other one, file and line
// first.
func (r *reader) notYAML(err error) error {
	m := regexp.MustCompile(`^yaml: line (\d+): (.*)$`).FindStringSubmatch(err.Error())
	if m == nil {
		return &config.Problem{Where: r.path, Why: "not YAML: " + strings.TrimPrefix(err.Error(), "yaml: ")}
	}
	return &config.Problem{Where: r.path + ":" + m[1], Why: "not YAML: " + m[2]}
}
