package gate

import (
	"fmt"
	"slices"

	"github.com/kilnhq/kiln/kernel/modalias"
)

// Device is a device that a platform has and the system cannot do without.
type Device struct {
	Name     string // for people: "disk on AHCI"
	Modalias string // as the device's modalias in sysfs

	// Drivers are names of modules any of which is a driver if it is built in:
	// Linux 6.12 does not tell what its built-in drivers are for.
	Drivers []string
}

// Unreachable finds devices for which neither the kernel nor a module that can
// be loaded, with all it needs, is a driver.
func Unreachable(s *System, layers []Layer, devices []Device) []Finding {
	c := &checker{system: s, release: s.Release}
	c.collect(layers)
	builtin := foldAll(s.BuiltinAliases)
	var out []Finding
	for _, d := range devices {
		alias := modalias.Fold(d.Modalias)
		matches := func(pattern string) bool { return modalias.Match(modalias.Fold(pattern), alias) }
		if slices.ContainsFunc(builtin, matches) || slices.ContainsFunc(d.Drivers, func(name string) bool { return s.Builtin[modalias.Fold(name)] }) {
			continue
		}
		var drivers, broken []string
		for _, name := range sortedKeys(c.winners) {
			w := c.winners[name]
			if !slices.ContainsFunc(w.info.Aliases, matches) {
				continue
			}
			drivers = append(drivers, name)
			if missing := c.missing(name, map[string]bool{}); missing != "" {
				broken = append(broken, fmt.Sprintf("%s, which needs %s", name, missing))
			}
		}
		f := Finding{Code: Driver, Severity: Error, File: "profile", Found: "no driver for " + d.Name + " (" + d.Modalias + ")",
			Wanted: "the platform has it, and neither the kernel nor a module of the base or of an extension is for it",
			Fix:    "add the module to the base, or as an extension"}
		switch {
		case len(drivers) > len(broken):
			continue
		case len(broken) > 0:
			f.Found = "the driver for " + d.Name + " is " + broken[0]
			f.Wanted = "neither the base nor an extension has that"
		}
		out = append(out, f)
	}
	return out
}

// missing returns the name of a module that the named one needs and that is not
// there, or "".
func (c *checker) missing(name string, seen map[string]bool) string {
	if seen[name] || c.system.Builtin[name] {
		return ""
	}
	seen[name] = true
	w, ok := c.winners[name]
	if !ok {
		return name
	}
	for _, d := range w.info.Depends {
		if m := c.missing(modalias.Fold(d), seen); m != "" {
			return m
		}
	}
	return ""
}
