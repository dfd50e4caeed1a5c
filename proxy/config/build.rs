//! Compiles the `.proto` files that the `envoy-types` package ships, and the few in `proto/` that it lacks, into one `FileDescriptorSet` in `OUT_DIR`.
//!
//! protox searches relative type names in packages of files that are not imported and then trips over names such as
//! `config.core.v3.HttpUri` within `envoy.extensions`. So every type name is made absolute before it is linked.

use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

use cargo_metadata::MetadataCommand;
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorProto};
use protox::file::{ChainFileResolver, File, FileResolver, GoogleFileResolver};

/// The include roots below `proto/`.
const ROOTS: [&str; 8] = [
    "data-plane-api",
    "xds",
    "googleapis",
    "protoc-gen-validate",
    "client_model",
    "opentelemetry-proto",
    "ratelimit",
    "cel-spec/proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=proto");
    println!("cargo::rerun-if-changed=../../Cargo.lock");
    let protos = proto_folder()?;

    let mut files = HashMap::new();
    for root in ROOTS {
        let root = protos.join(root);
        read_protos(&root, &root, &mut files)?;
    }
    let supplements = Path::new("proto");
    read_protos(supplements, supplements, &mut files)?;

    let mut types = HashSet::new();
    for file in files.values() {
        collect_types(file.package(), &file.message_type, &mut types);
        types.extend(file.enum_type.iter().map(|e| join(file.package(), e.name())));
    }
    for file in files.values_mut() {
        let package = file.package().to_owned();
        for message in &mut file.message_type {
            make_absolute(&package, message, &types);
        }
        for extension in &mut file.extension {
            absolute_field(&package, extension, &types);
        }
        for method in file.service.iter_mut().flat_map(|s| &mut s.method) {
            absolute(&package, &mut method.input_type, &types);
            absolute(&package, &mut method.output_type, &types);
        }
    }

    let mut names: Vec<String> = files.keys().cloned().collect();
    names.sort();
    let mut resolver = ChainFileResolver::new();
    resolver.add(InMemory(files));
    resolver.add(GoogleFileResolver::new());
    let mut compiler = protox::Compiler::with_file_resolver(resolver);
    compiler.include_imports(true).include_source_info(false);
    compiler.open_files(&names)?;

    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    fs::write(out.join("descriptors.bin"), compiler.encode_file_descriptor_set())?;
    Ok(())
}

/// The `proto` folder of the `envoy-types` package that this build uses. The first try needs no network; the second is
/// for a checkout where not every package of the lock file has been fetched yet.
fn proto_folder() -> Result<PathBuf, Box<dyn Error>> {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").ok_or("no manifest folder")?).join("Cargo.toml");
    let mut options = Vec::new();
    if let Ok(target) = env::var("TARGET") {
        options.extend(["--filter-platform".to_owned(), target]);
    }
    let run = |offline: bool| {
        let mut options = options.clone();
        if offline {
            options.push("--offline".to_owned());
        }
        MetadataCommand::new().manifest_path(&manifest).other_options(options).exec()
    };
    let metadata = run(true).or_else(|_| run(false))?;
    let package = metadata
        .packages
        .iter()
        .find(|package| package.name.as_str() == "envoy-types")
        .ok_or("the package envoy-types is not a dependency")?;
    let folder = package.manifest_path.parent().ok_or("envoy-types has no folder")?.join("proto");
    Ok(folder.into_std_path_buf())
}

/// Parses every `.proto` below `folder`; the key is the name that import statements use.
fn read_protos(
    root: &Path,
    folder: &Path,
    files: &mut HashMap<String, FileDescriptorProto>,
) -> Result<(), Box<dyn Error>> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            read_protos(root, &path, files)?;
        } else if path.extension().is_some_and(|e| e == "proto") {
            let name = path.strip_prefix(root)?.to_str().ok_or("a file name is not UTF-8")?.replace('\\', "/");
            let mut file = File::from_source(&name, &fs::read_to_string(&path)?)?.file_descriptor_proto().clone();
            file.source_code_info = None;
            files.insert(name, file);
        }
    }
    Ok(())
}

fn join(scope: &str, name: &str) -> String {
    if scope.is_empty() { name.to_owned() } else { format!("{scope}.{name}") }
}

fn collect_types(scope: &str, messages: &[DescriptorProto], types: &mut HashSet<String>) {
    for message in messages {
        let name = join(scope, message.name());
        collect_types(&name, &message.nested_type, types);
        types.extend(message.enum_type.iter().map(|e| join(&name, e.name())));
        types.insert(name);
    }
}

fn make_absolute(scope: &str, message: &mut DescriptorProto, types: &HashSet<String>) {
    let name = join(scope, message.name());
    for field in message.field.iter_mut().chain(&mut message.extension) {
        absolute_field(&name, field, types);
    }
    for nested in &mut message.nested_type {
        make_absolute(&name, nested, types);
    }
}

fn absolute_field(scope: &str, field: &mut FieldDescriptorProto, types: &HashSet<String>) {
    absolute(scope, &mut field.type_name, types);
    absolute(scope, &mut field.extendee, types);
}

/// Looks `name` up in `scope`, then in each scope around it; what is not found is left to the linker.
fn absolute(scope: &str, name: &mut Option<String>, types: &HashSet<String>) {
    let Some(relative) = name.as_deref().filter(|name| !name.is_empty() && !name.starts_with('.')) else { return };
    let mut scope = Some(scope);
    while let Some(at) = scope {
        let candidate = join(at, relative);
        if types.contains(&candidate) {
            *name = Some(format!(".{candidate}"));
            return;
        }
        scope = match at.rfind('.') {
            Some(dot) => Some(&at[..dot]),
            None if at.is_empty() => None,
            None => Some(""),
        };
    }
}

struct InMemory(HashMap<String, FileDescriptorProto>);

impl FileResolver for InMemory {
    fn open_file(&self, name: &str) -> Result<File, protox::Error> {
        match self.0.get(name) {
            Some(file) => Ok(File::from_file_descriptor_proto(file.clone())),
            None => Err(protox::Error::file_not_found(name)),
        }
    }

    fn resolve_path(&self, _path: &Path) -> Option<String> {
        None
    }
}
