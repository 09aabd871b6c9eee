//go:build linux

package stage

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/kilnhq/kiln/internal/atomicfile"
	"github.com/kilnhq/kiln/machine/console"
	"github.com/kilnhq/kiln/machine/layers"
	"github.com/kilnhq/kiln/machine/modules"
)

// wantedName is the file of modprobe.d with the parameters of the machine
// configuration.
const wantedName = "zz-kiln-configuration.conf"

// want loads the modules that the machine configuration asks for, and gives them its
// parameters. Those of a configuration before it are no longer wanted; they stay in the
// kernel.
func (v *inventory) want(c *console.Console, confDir, file string, wanted []layers.Module) error {
	var conf bytes.Buffer
	given, parameters := map[string]bool{}, map[string]string{}
	for _, m := range wanted {
		p := strings.TrimSpace(m.Parameters)
		names, err := v.loader.Resolve(m.Name)
		if err != nil || p == "" {
			continue // loading it says what is wrong
		}
		for _, n := range names {
			given[n], parameters[n] = true, p
			fmt.Fprintf(&conf, "options %s %s \n", n, p) // the space is as in options
		}
	}
	v.loader.Give(parameters)
	if err := keepOptions(confDir, conf.Bytes()); err != nil {
		return err
	}
	before := v.loaded()
	loadAsked(v.loader, wanted)
	v.mu.Lock()
	v.wanted, v.given = wanted, given
	if v.own == nil {
		v.own = map[string]bool{}
	}
	for name := range v.loaded() {
		if !before[name] {
			v.own[name] = true
		}
	}
	v.mu.Unlock()
	_, err := v.update(c, file, false)
	return err
}

// keepOptions makes the parameters known to modprobe, which the kernel calls.
func keepOptions(dir string, conf []byte) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := atomicfile.Create(filepath.Join(dir, wantedName), 0o444)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(conf); err != nil {
		return err
	}
	return f.Commit()
}

// loaded are the modules that the loader has loaded.
func (v *inventory) loaded() map[string]bool {
	names := map[string]bool{}
	for _, r := range v.loader.Reports() {
		if r.State == modules.Loaded && !r.Before {
			names[r.Name] = true
		}
	}
	return names
}

// differs says what to do about a module that is in the kernel with other parameters
// than the machine configuration gives it; nothing if they are the same.
func (v *inventory) differs(name, has, wanted string) string {
	switch {
	case has == wanted || !v.given[name] && !v.own[name]:
		return ""
	case v.own[name]:
		return fmt.Sprintf("is in the kernel with the parameters %q, and is to have %q: restart the node", has, wanted)
	}
	return fmt.Sprintf("was in the kernel before the machine configuration, with the parameters %q, and is to have %q: give them as kernel arguments, %s.NAME=VALUE", has, wanted, name)
}
