//go:build linux

// Package cni gives containers a network by calling plugins, as version 1.0 of the
// CNI specification says (https://www.cni.dev/docs/spec/): a list of plugins, each
// a program that gets its configuration, and what the one before it has done, on
// its standard input, and what to do in its environment.
package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// maxList is the size of a configuration list, in bytes.
const maxList = 1 << 20

// A Network is a list of plugins.
type Network struct {
	version string
	name    string
	plugins []map[string]any
	path    []string // where the programs are
}

// Parse reads a configuration list. The plugins are looked for in directories.
func Parse(data []byte, path ...string) (*Network, error) {
	if len(data) > maxList {
		return nil, fmt.Errorf("configuration list of %d bytes, want at most %d", len(data), maxList)
	}
	var list struct {
		Version string           `json:"cniVersion"`
		Name    string           `json:"name"`
		Plugins []map[string]any `json:"plugins"`
	}
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, err
	}
	if list.Version == "" || list.Name == "" || len(list.Plugins) == 0 {
		return nil, errors.New("want cniVersion, name and plugins")
	}
	for i, p := range list.Plugins {
		if kind, _ := p["type"].(string); kind == "" || kind != filepath.Base(kind) || kind == ".." || kind == "." {
			return nil, fmt.Errorf("plugins[%d].type: %v, want the name of a program", i, p["type"])
		}
	}
	return &Network{list.Version, list.Name, list.Plugins, path}, nil
}

// Load reads a configuration list from a file.
func Load(name string, path ...string) (*Network, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	n, err := Parse(data, path...)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return n, nil
}

// A PortMapping leads from a port of the host to one of the container.
type PortMapping struct {
	HostPort      int    `json:"hostPort"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol"`
}

// An Attachment is a container's interface in a network.
type Attachment struct {
	Container string // its ID
	Namespace string // path of its network name space; "" if that is gone
	Interface string
	Ports     []PortMapping
}

// Add attaches a container, and returns what the last plugin says, which Delete
// wants.
func (n *Network) Add(ctx context.Context, a Attachment) (result []byte, err error) {
	var previous any
	for _, p := range n.plugins {
		out, err := n.call(ctx, "ADD", p, a, previous)
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal(out, &previous); err != nil {
			return nil, fmt.Errorf("CNI plugin %v says what is no JSON: %w", p["type"], err)
		}
		result = out
	}
	return result, nil
}

// Delete undoes what Add did, or has begun to do. It is no error if there is
// nothing of it. result may be nil.
func (n *Network) Delete(ctx context.Context, a Attachment, result []byte) error {
	var previous any
	if len(result) > 0 {
		if err := json.Unmarshal(result, &previous); err != nil {
			previous = nil
		}
	}
	var failed []error
	for _, p := range slices.Backward(n.plugins) {
		_, err := n.call(ctx, "DEL", p, a, previous)
		failed = append(failed, err)
	}
	return errors.Join(failed...)
}

// call runs a plugin.
func (n *Network) call(ctx context.Context, verb string, plugin map[string]any, a Attachment, previous any) ([]byte, error) {
	kind := plugin["type"].(string)
	config := map[string]any{}
	for k, v := range plugin {
		if k != "capabilities" {
			config[k] = v
		}
	}
	config["cniVersion"], config["name"] = n.version, n.name
	if previous != nil {
		config["prevResult"] = previous
	}
	if can, _ := plugin["capabilities"].(map[string]any); can["portMappings"] == true && len(a.Ports) > 0 {
		config["runtimeConfig"] = map[string]any{"portMappings": a.Ports}
	}
	in, err := json.Marshal(config)
	if err != nil {
		return nil, err
	}
	program, err := n.find(kind)
	if err != nil {
		return nil, err
	}
	var stdout, stderr bytes.Buffer
	c := exec.CommandContext(ctx, program)
	c.Stdin, c.Stdout, c.Stderr = bytes.NewReader(in), &stdout, &stderr
	c.Env = []string{
		"PATH=/usr/bin:/usr/local/bin", "CNI_COMMAND=" + verb, "CNI_CONTAINERID=" + a.Container, "CNI_NETNS=" + a.Namespace,
		"CNI_IFNAME=" + a.Interface, "CNI_PATH=" + strings.Join(n.path, ":"),
	}
	if err := c.Run(); err != nil {
		var said struct {
			Text    string `json:"msg"`
			Details string `json:"details"`
		}
		text := strings.TrimSpace(stderr.String())
		if json.Unmarshal(stdout.Bytes(), &said) == nil && said.Text != "" {
			text = strings.TrimSuffix(said.Text+": "+said.Details, ": ")
		}
		return nil, fmt.Errorf("CNI plugin %s %s: %w: %s", kind, verb, err, text)
	}
	return stdout.Bytes(), nil
}

func (n *Network) find(kind string) (string, error) {
	for _, dir := range n.path {
		name := filepath.Join(dir, kind)
		if fi, err := os.Stat(name); err == nil && fi.Mode().IsRegular() {
			return name, nil
		}
	}
	return "", fmt.Errorf("CNI plugin %s is in none of %s", kind, strings.Join(n.path, ", "))
}
