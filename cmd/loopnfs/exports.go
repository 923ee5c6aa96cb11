package main

import (
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/BurntSushi/toml"
	"github.com/spf13/pflag"

	"loopnfs/internal/stack"
	"loopnfs/nfsserver"
)

// exportRules say who may do what with an export, in a file or as flags.
type exportRules struct {
	Allow    []string
	Squash   string
	AnonUID  uint32
	AnonGID  uint32
	ReadOnly bool `toml:"read_only"`
	Secure   bool
}

// exportEntry is an export of a configuration file.
type exportEntry struct {
	Dir, Name string
	exportRules
}

// maxConfig is the size in bytes that a configuration file may have.
const maxConfig = 1 << 20

// flags makes the rules flags, which hold for what is named with --export.
func (r *exportRules) flags(f *pflag.FlagSet) {
	f.StringSliceVar(&r.Allow, "allow", nil, "`networks` or addresses of clients; default: everybody who can connect")
	f.StringVar(&r.Squash, "squash", "root", "whose identity is taken away: `root|all|none`")
	f.Uint32Var(&r.AnonUID, "anonuid", nfsserver.DefaultAnon, "`uid` of those whose identity is taken away")
	f.Uint32Var(&r.AnonGID, "anongid", nfsserver.DefaultAnon, "`gid` of those whose identity is taken away")
	f.BoolVar(&r.ReadOnly, "read-only", false, "refuse all changes")
	f.BoolVar(&r.Secure, "secure", false, "refuse clients that call from ports of 1024 and above")
}

// apply puts the rules into an export. Its error names the rule.
func (r *exportRules) apply(x *stack.ExportConfig) (err error) {
	if x.Squash, err = nfsserver.ParseSquash(r.Squash); err != nil {
		return err
	}
	for _, a := range r.Allow {
		p, err := parseNetwork(a)
		if err != nil {
			return fmt.Errorf("allow: %w", err)
		}
		x.Allow = append(x.Allow, p)
	}
	if r.AnonUID == 0 || r.AnonGID == 0 {
		return fmt.Errorf("anonuid %d, anongid %d: those whose identity is taken away cannot be root", r.AnonUID, r.AnonGID)
	}
	x.AnonUID, x.AnonGID, x.ReadOnly, x.Secure = r.AnonUID, r.AnonGID, r.ReadOnly, r.Secure
	return nil
}

// allExports returns the exports of the command line and of the file.
func (o *serveOptions) allExports() ([]stack.ExportConfig, error) {
	var all []stack.ExportConfig
	for _, s := range o.exports {
		x := parseExport(s)
		if err := o.rules.apply(&x); err != nil {
			return nil, usagef("--%w", err)
		}
		all = append(all, x)
	}
	if o.file == "" {
		return all, nil
	}
	more, err := readExports(o.file)
	if err != nil {
		return nil, usagef("--config %s: %w", o.file, err)
	}
	return append(all, more...), nil
}

// readExports reads a configuration file. What it does not know is an error, so that
// no rule is overlooked for a typing error.
func readExports(name string) ([]stack.ExportConfig, error) {
	st, err := os.Stat(name)
	switch {
	case err != nil:
		return nil, err
	case !st.Mode().IsRegular() || st.Size() > maxConfig:
		return nil, fmt.Errorf("want a file of %d bytes at most", maxConfig)
	}
	var tables struct{ Export []toml.Primitive }
	md, err := toml.DecodeFile(name, &tables)
	if err != nil {
		return nil, err
	}
	var all []stack.ExportConfig
	for i, table := range tables.Export {
		e := exportEntry{exportRules: exportRules{Squash: "root", AnonUID: nfsserver.DefaultAnon, AnonGID: nfsserver.DefaultAnon}}
		x, err := e.decode(&md, table)
		if err != nil {
			return nil, fmt.Errorf("export %d: %w", i+1, err)
		}
		all = append(all, x)
	}
	if unknown := md.Undecoded(); len(unknown) > 0 {
		return nil, fmt.Errorf("%q means nothing here; see loopnfs serve --help", unknown[0].String())
	}
	return all, nil
}

func (e *exportEntry) decode(md *toml.MetaData, table toml.Primitive) (x stack.ExportConfig, err error) {
	if err := md.PrimitiveDecode(table, e); err != nil {
		return x, err
	}
	if e.Dir == "" {
		return x, fmt.Errorf("no dir: name the directory to serve")
	}
	x = stack.ExportConfig{Dir: e.Dir, Name: e.Name}
	return x, e.apply(&x)
}

// parseExport splits DIR:/NAME. A directory whose own name contains ":/" needs
// a NAME.
func parseExport(s string) stack.ExportConfig {
	if i := strings.LastIndex(s, ":/"); i > 0 {
		return stack.ExportConfig{Dir: s[:i], Name: s[i+1:]}
	}
	return stack.ExportConfig{Dir: s}
}

func parseNetwork(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, fmt.Errorf("%q is neither an address nor a network: write 10.0.0.5 or 10.0.0.0/8", s)
	}
	return p.Masked(), nil
}
