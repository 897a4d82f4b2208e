package policyfile

import (
	"strconv"

	"go.yaml.in/yaml/v3"

	"github.com/pulley-lb/pulley/policy"
)

// complete adds the settings that a file has left out and whose default is not the zero value.
func complete(top *yaml.Node) {
	for _, t := range items(field(top, "tiers")) {
		name := ""
		if n := field(t, "name"); n != nil {
			name = n.Value
		}
		d := policy.TierDefaults(name)
		deadline, _ := d.Deadline.MarshalText()
		add(t, "share", strconv.Itoa(d.Share))
		add(t, "storage", string(d.Storage))
		add(t, "max_queue", strconv.Itoa(d.MaxQueue))
		add(t, "deadline", string(deadline))
		add(t, "retries", strconv.Itoa(d.Retries))
		if field(t, "reserve") == nil && d.Reserve > 0 {
			add(t, "reserve", strconv.Itoa(d.Reserve))
		}
	}
	for _, pool := range values(field(top, "pools")) {
		for _, s := range items(field(pool, "spill")) {
			add(s, "penalty", strconv.Itoa(policy.SpillPenalty))
		}
	}
	for _, r := range values(field(top, "routes")) {
		for _, t := range items(field(r, "to")) {
			add(t, "weight", "1")
		}
		for _, m := range items(field(r, "mirror")) {
			add(m, "percent", "100")
		}
		if shift := field(r, "shift"); shift != nil {
			add(shift, "by", "10")
			add(shift, "every", "2m")
		}
	}
}

// field returns the value of a key of a mapping; nil if there is none, or n is no mapping.
func field(n *yaml.Node, key string) *yaml.Node {
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return resolve(n.Content[i+1])
		}
	}
	return nil
}

// items returns the elements of a list.
func items(n *yaml.Node) (list []*yaml.Node) {
	if n != nil && n.Kind == yaml.SequenceNode {
		for _, item := range n.Content {
			list = append(list, resolve(item))
		}
	}
	return list
}

// values returns the values of a mapping.
func values(n *yaml.Node) (list []*yaml.Node) {
	if n != nil && n.Kind == yaml.MappingNode {
		for i := 1; i < len(n.Content); i += 2 {
			list = append(list, resolve(n.Content[i]))
		}
	}
	return list
}

func resolve(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

// add gives a mapping a key that it lacks.
func add(n *yaml.Node, key, value string) {
	if n.Kind == yaml.MappingNode && field(n, key) == nil {
		n.Content = append(n.Content, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: key, Line: n.Line}, &yaml.Node{Kind: yaml.ScalarNode, Value: value, Line: n.Line})
	}
}
